#include "parallel/watchdog.h"

#include <pthread.h>
#include <signal.h>

#include <utility>

namespace metattn {

Watchdog::Watchdog(double deadline_s, std::function<void(const char*, double)> on_expiry)
    : deadline_(
          std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(deadline_s))),
      on_expiry_(std::move(on_expiry)) {
  // Signals are for the program's own threads: this one starts with all of them blocked.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void Watchdog::Run() {
  std::unique_lock lock(mutex_);
  while (!wake_.wait_for(lock, kPoll, [this] { return stop_; })) {
    const Clock::rep began = began_.load(std::memory_order_acquire);
    if (began == kIdle) continue;
    const char* operation = operation_.load(std::memory_order_relaxed);
    const Clock::duration age = Clock::now().time_since_epoch() - Clock::duration(began);
    // A different start now means that the operation ended while we looked.
    if (age <= deadline_ || began_.load(std::memory_order_acquire) != began) continue;
    on_expiry_(operation, std::chrono::duration<double>(age).count());
    return;
  }
}

}  // namespace metattn
