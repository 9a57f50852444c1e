// Notices that an operation has outlived its deadline, from a thread of its own.
//
// For operations that cannot be taken back: on expiry `on_expiry` runs once on the watchdog's
// thread with the operation's name and the seconds since it began, and is expected to end the
// process. Begin and End belong to one caller thread; an operation's name must outlive it (a
// literal). Destruction stops the thread at once. Cost: Begin and End store three words, no
// lock, no system call; the thread wakes ten times a second, so an expiry is noticed up to kPoll
// late.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

namespace metattn {

class Watchdog {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPoll{100};

  Watchdog(double deadline_s, std::function<void(const char* operation, double seconds)> on_expiry);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  void Begin(const char* operation, Clock::time_point now) {
    operation_.store(operation, std::memory_order_relaxed);
    began_.store(now.time_since_epoch().count(), std::memory_order_release);
  }
  void End() { began_.store(kIdle, std::memory_order_release); }

 private:
  static constexpr Clock::rep kIdle = -1;

  void Run();

  const Clock::duration deadline_;
  const std::function<void(const char*, double)> on_expiry_;
  std::atomic<const char*> operation_{""};
  std::atomic<Clock::rep> began_{kIdle};
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace metattn
