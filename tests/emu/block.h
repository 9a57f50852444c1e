// Runs one block of CUDA threads at a time, each thread a fiber; who goes next is the thread order.
//
// Ownership: the one instance owns the fibers and the shared memory and reuses them. Thread safety:
// none, callers hold the runtime's lock (runtime_state.h). Errors: misuse and deadlocks are printed
// and abort. Cost: some microseconds per block of 128 threads, some 10 ns per switch.
#pragma once

#include <vector_types.h>

#include <functional>
#include <memory>
#include <vector>

#include "tests/emu/async_copies.h"
#include "tests/emu/collectives.h"
#include "tests/emu/control.h"
#include "tests/emu/fiber.h"
#include "tests/emu/launch.h"
#include "tests/emu/shared_arena.h"

namespace emu {

struct Thread {
  Fiber fiber;
  uint3 index{};
  int warp = 0, lane = 0;
  bool alive = false;
  const char* waits_in = nullptr;  // valid while it waits
  Site site;
  AsyncCopies copies;
};

// A collective call of (part of) a warp.
struct WarpCall {
  const char* name;
  unsigned mask;
  // Run once, by the last lane to arrive; arguments[i] is what lane i of the mask gave.
  void (*complete)(void* const* arguments, unsigned mask);
  bool orders_memory = false;
  bool aligned = false;  // all 32 lanes, at the same place in the program
};

class Block {
 public:
  static Block& Get();

  void RunGrid(const LaunchShape& shape, const std::function<void()>& body);
  void SetSchedule(const ThreadSchedule& schedule);

  bool running() const { return current_ != nullptr; }
  Thread& current() { return *current_; }
  SharedArena& shared() { return shared_; }

  int SyncBlock(const char* name, bool predicate, const Site& site);
  void SyncWarp(const WarpCall& call, void* argument, const Site& site);
  void Yield();

 private:
  static constexpr unsigned kRing = 1024;  // at least the threads of a block; a power of two
  static constexpr int kMaxMeetings = 8;   // different masks of one warp at a time

  struct Meeting {
    unsigned mask = 0, arrived = 0, round = 0;
    const char* name = nullptr;
    Site site;
    void* arguments[32] = {};
    Thread* threads[32] = {};
    char order[2] = {};  // TSan's points, one per parity of rounds
  };
  struct Warp {
    unsigned lanes = 0;  // those that exist
    unsigned exited = 0;
    Meeting meetings[kMaxMeetings];
  };
  struct Barrier {
    int arrived = 0, agreed = 0, result = 0;
    unsigned round = 0;
    const char* name = nullptr;
    Site site;
    Thread* threads[kRing] = {};
    char order[2] = {};
  };

  Block() { SetSchedule(ThreadScheduleFromEnvironment()); }
  static void ThreadMain();
  void RunBlock(uint3 index, const std::function<void()>& body);
  void StartThreads();
  Meeting& MeetingOf(Warp& warp, unsigned mask, const WarpCall& call, const Site& site);
  void CheckWarpCall(const Warp& warp, const WarpCall& call, const Site& site);
  void Wait(const char* in, const Site& site);
  void SwitchTo(Thread& next, bool ends);
  void Push(Thread* thread) { ready_[tail_++ % kRing] = thread; }
  Thread* Pop();
  [[noreturn]] void ReportDeadlock();

  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  Barrier barrier_;
  SharedArena shared_;
  Fiber host_;
  Thread* current_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  int size_ = 0, alive_ = 0;
  Thread* ready_[kRing] = {};
  unsigned head_ = 0, tail_ = 0;
  ThreadOrder order_ = ThreadOrder::kFifo;
  // xorshift32, state of kRandom. Not std::mt19937: its code may come from a file that is program
  // to ThreadSanitizer, and this is hardware.
  unsigned Random();
  unsigned random_ = 1;
  char begin_ = 0, end_ = 0;  // TSan's points: host to threads and back
};

}  // namespace emu
