#include "tests/emu/fault_report.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
namespace emu {
void ReportFaults() {}
}  // namespace emu
#else

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "tests/emu/block.h"
#include "tests/emu/device_pages.h"
#include "tests/emu/kernel.h"

namespace emu {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
struct sigaction before;

// Not all that it calls is safe in a signal handler; the process is lost anyway.
void Report(int, siginfo_t* fault, void*) {
  char message[256];
  int length = 0;
  if (fault->si_code == SEGV_PKUERR) {
    length = std::snprintf(message, sizeof message,
                           "emu: host code touches device memory, address %p\n", fault->si_addr);
  } else if (Block::Get().running()) {
    length = std::snprintf(
        message, sizeof message,
        "emu: fault at address %p%s, thread (%u,%u,%u) of block (%u,%u,%u)\n", fault->si_addr,
        Block::Get().current().fiber.IsStackEnd(fault->si_addr) ? ": stack overflow" : "",
        threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z);
  }
  if (length > 0 && write(STDERR_FILENO, message, static_cast<std::size_t>(length)) < 0) {
  }
  sigaction(SIGSEGV, &before, nullptr);  // on return the fault happens again
}

bool Install() {
  struct sigaction action = {};
  action.sa_sigaction = Report;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  return sigaction(SIGSEGV, &action, &before) == 0;
}

// A stack for the handler. Not in the thread itself: every thread of the process would lose so much
// of its own stack, and those of the metrics server have only 100 KB.
class HandlerStack {
 public:
  HandlerStack() : memory_(std::make_unique<char[]>(kStackBytes)) {
    stack_t stack = {};
    stack.ss_sp = memory_.get();
    stack.ss_size = kStackBytes;
    sigaltstack(&stack, nullptr);
  }
  ~HandlerStack() {
    stack_t none = {};
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
  }
  HandlerStack(const HandlerStack&) = delete;
  HandlerStack& operator=(const HandlerStack&) = delete;

 private:
  std::unique_ptr<char[]> memory_;
};

}  // namespace

void ReportFaults() {
  static const bool installed = Install();
  if (installed) thread_local const HandlerStack stack;
}

}  // namespace emu

#endif
