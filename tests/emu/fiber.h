// A fiber: a stack of its own and the place where it stopped; the emulation has one per CUDA
// thread.
//
// Ownership: owns its stack (mapped at the first Start, reused by later ones). Thread safety: none;
// all fibers that switch to each other run on one thread at a time. Errors: aborts when no stack
// can be mapped; running over the end of a stack hits pages without access. Cost: a switch saves
// six registers (some ns); under ASan and TSan it also tells the sanitizer. x86-64 only.
#pragma once

#include <cstddef>

namespace emu {

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // Makes the next switch to it call `entry`, which must call Entered() first and never return.
  void Start(void (*entry)());
  // Makes it stand for the stack that runs now, which others can then switch back to.
  void Adopt();
  // Stops the running fiber `from` and goes on with `to`. `ends`: `from` will never go on.
  static void Switch(Fiber& from, Fiber& to, bool ends = false);
  static void Entered();
  // Whether the address lies in the pages without access below the stack.
  bool IsStackEnd(const void* address) const;

 private:
  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;         // lowest usable byte; null for an adopted stack
  const void* bottom_ = nullptr;  // what the sanitizers want to know
  std::size_t size_ = 0;
  void* fake_stack_ = nullptr;
  void* sanitizer_fiber_ = nullptr;
};

// TSan sees the program's memory accesses but not the scheduler's: the emulation is compiled
// without it and says through these what orders memory between CUDA threads. Nothing without TSan.
void OrderBefore(void* point);
void OrderAfter(void* point);
// Accesses that the emulation makes in the name of the running thread.
void NoteRead(const void* data, std::size_t bytes);
void NoteWrite(void* data, std::size_t bytes);

}  // namespace emu
