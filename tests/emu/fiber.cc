#include "tests/emu/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#error "the emulation's scheduler is compiled with -fno-sanitize=thread and EMU_TSAN defined"
#endif
#if defined(EMU_TSAN)
#include <sanitizer/tsan_interface.h>
extern "C" {  // what the instrumentation calls for memory of any size; in no header
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif

// emu_switch_stack(where to save, what to load): the callee-saved registers of the System V ABI go
// onto the old stack, its address to *rdi; then the same from the new stack. The control words of
// SSE and x87 are left as they are: no kernel changes them.
asm(R"(
.text
.globl emu_switch_stack
.type emu_switch_stack, @function
emu_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch_stack, .-emu_switch_stack
)");
extern "C" void emu_switch_stack(void** save, void* load);

namespace emu {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kGuardBytes = 64 * 1024;  // wider than frames are: none jumps over it
constexpr std::size_t kOutermostBytes = 4096;   // more than the frames of ThreadMain
// Tops at the same place of a page would share a few sets of every cache; all threads of a block
// are switched through at each collective.
constexpr std::size_t kColours = 64, kColourBytes = 5 * 64;
Fiber* previous = nullptr;  // who switched last
std::size_t mapped_stacks = 0;

char* MapStack() {
  void* mapped = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED || mprotect(mapped, kGuardBytes, PROT_NONE) != 0) {
    std::fprintf(stderr, "emu: no memory for the stack of a CUDA thread\n");
    std::abort();
  }
  return static_cast<char*>(mapped) + kGuardBytes;
}

}  // namespace

Fiber::~Fiber() {
  if (stack_ != nullptr) munmap(stack_ - kGuardBytes, kGuardBytes + kStackBytes);
}

bool Fiber::IsStackEnd(const void* address) const {
  const char* at = static_cast<const char*>(address);
  return stack_ != nullptr && at < stack_ && at >= stack_ - kGuardBytes;
}

void Fiber::Start(void (*entry)()) {
  if (stack_ == nullptr) {
    stack_ = MapStack();
    bottom_ = stack_;
    size_ = kStackBytes - mapped_stacks++ % kColours * kColourBytes;
#if defined(EMU_TSAN)
    sanitizer_fiber_ = __tsan_create_fiber(0);
#endif
  }
#if defined(__SANITIZE_ADDRESS__)
  // Left by the fiber that ended in its outermost frames; deeper ones have returned.
  __asan_unpoison_memory_region(stack_ + size_ - kOutermostBytes, kOutermostBytes);
#endif
  fake_stack_ = nullptr;
  // The frame that emu_switch_stack will pop: six registers, where to return to; then the (null)
  // return address of `entry` itself, on a place that gives its frame the ABI's alignment.
  void** frame = reinterpret_cast<void**>(stack_ + size_) - 8;
  for (int i = 0; i < 6; ++i) frame[i] = nullptr;
  frame[6] = reinterpret_cast<void*>(entry);
  frame[7] = nullptr;
  stack_pointer_ = frame;
}

void Fiber::Adopt() {
#if defined(EMU_TSAN)
  sanitizer_fiber_ = __tsan_get_current_fiber();
#endif
}

void Fiber::Entered() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &previous->bottom_, &previous->size_);
#endif
}

void Fiber::Switch(Fiber& from, Fiber& to, [[maybe_unused]] bool ends) {
  previous = &from;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack_, to.bottom_, to.size_);
#endif
#if defined(EMU_TSAN)
  __tsan_switch_to_fiber(to.sanitizer_fiber_, __tsan_switch_to_fiber_no_sync);
#endif
  emu_switch_stack(&from.stack_pointer_, to.stack_pointer_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack_, &previous->bottom_, &previous->size_);
#endif
}

#if defined(EMU_TSAN)
void OrderBefore(void* point) { __tsan_release(point); }
void OrderAfter(void* point) { __tsan_acquire(point); }
void NoteRead(const void* data, std::size_t bytes) {
  __tsan_read_range(const_cast<void*>(data), bytes);
}
void NoteWrite(void* data, std::size_t bytes) { __tsan_write_range(data, bytes); }
#else
void OrderBefore(void*) {}
void OrderAfter(void*) {}
void NoteRead(const void*, std::size_t) {}
void NoteWrite(void*, std::size_t) {}
#endif

}  // namespace emu
