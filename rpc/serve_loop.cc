#include "rpc/serve_loop.h"

#include <csignal>
#include <ctime>
#include <utility>

namespace metattn {
namespace {

sigset_t StopSignals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

}  // namespace

void BlockStopSignals() {
  const sigset_t set = StopSignals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

StopWatcher::StopWatcher(std::function<void()> on_first, std::function<void()> on_second) {
  thread_ = std::thread([this, first = std::move(on_first), second = std::move(on_second)] {
    const sigset_t set = StopSignals();
    bool seen = false;
    while (!stop_) {
      const timespec tick = {0, 200 * 1000 * 1000};
      if (sigtimedwait(&set, nullptr, &tick) < 0) continue;  // nothing came
      if (seen) {
        second();
      } else {
        seen = true;
        first();
      }
    }
  });
}

StopWatcher::~StopWatcher() {
  stop_ = true;
  thread_.join();
}

bool IsHealthy(const EngineSnapshot& snapshot, double max_step_seconds) {
  return !snapshot.failed && !snapshot.draining &&
         snapshot.seconds_in_current_step <= max_step_seconds;
}

}  // namespace metattn
