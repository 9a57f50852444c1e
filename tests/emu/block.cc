#include "tests/emu/block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <utility>

#include "tests/emu/kernel.h"

uint3 threadIdx{};
uint3 blockIdx{};
dim3 blockDim{};
dim3 gridDim{};

namespace emu {
namespace {

const char* BaseName(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return slash == nullptr ? site.file_name() : slash + 1;
}

// The same literal is often the same pointer, and this is asked at every collective.
bool SameText(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

bool SamePlace(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() && SameText(a.file_name(), b.file_name());
}

[[noreturn]] void Report(const char* message, const char* where) {
  std::fprintf(stderr, "emu: %s%s", message, where);
  if (Block::Get().running()) {
    std::fprintf(stderr, ", thread (%u,%u,%u) of block (%u,%u,%u)", threadIdx.x, threadIdx.y,
                 threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z);
  }
  std::fputc('\n', stderr);
  std::abort();
}

[[noreturn]] void FailAgainst(const char* name, const Site& site, const char* other_name,
                              const Site& other) {
  char message[256];
  std::snprintf(message, sizeof message,
                "divergence: %s, but other threads of it are in %s at %s:%u", name, other_name,
                BaseName(other), other.line());
  Fail(message, site);
}

}  // namespace

void Fail(const char* message, const Site& site) {
  char where[256];
  std::snprintf(where, sizeof where, " at %s:%u", BaseName(site), site.line());
  Report(message, where);
}

void Fail(const char* message) { Report(message, ""); }

Block& Block::Get() {
  static Block block;
  return block;
}

void Block::SetSchedule(const ThreadSchedule& schedule) {
  order_ = schedule.order;
  random_ = schedule.seed == 0 ? 1 : schedule.seed;
}

unsigned Block::Random() {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 17;
  random_ ^= random_ << 5;
  return random_;
}

Thread* Block::Pop() {
  if (head_ == tail_) return nullptr;
  if (order_ == ThreadOrder::kLifo) return ready_[--tail_ % kRing];
  if (order_ == ThreadOrder::kRandom) {
    const unsigned pick = head_ + Random() % (tail_ - head_);
    std::swap(ready_[head_ % kRing], ready_[pick % kRing]);
  }
  return ready_[head_++ % kRing];
}

void Block::SwitchTo(Thread& next, bool ends) {
  Thread* const me = current_;
  if (&next == me) return;
  current_ = &next;
  threadIdx = next.index;
  Fiber::Switch(me == nullptr ? host_ : me->fiber, next.fiber, ends);
}

void Block::Wait(const char* in, const Site& site) {
  current_->waits_in = in;
  current_->site = site;
  Thread* next = Pop();
  if (next == nullptr) ReportDeadlock();
  SwitchTo(*next, false);
}

void Block::Yield() {
  // Behind all others, whatever the order: who yields waits for something that they do.
  if (order_ == ThreadOrder::kLifo) {
    ready_[--head_ % kRing] = current_;
  } else {
    Push(current_);
  }
  SwitchTo(*Pop(), false);
}

void Block::ReportDeadlock() {
  std::fprintf(stderr, "emu: deadlock in block (%u,%u,%u): %d of %d threads alive, all wait\n",
               blockIdx.x, blockIdx.y, blockIdx.z, alive_, size_);
  std::vector<bool> told(static_cast<std::size_t>(size_));
  for (std::size_t i = 0; i < told.size(); ++i) {
    const Thread& first = *threads_[i];
    if (!first.alive || told[i]) continue;
    int count = 0;
    for (std::size_t j = i; j < told.size(); ++j) {
      const Thread& other = *threads_[j];
      if (!other.alive || !SamePlace(other.site, first.site)) continue;
      told[j] = true;
      ++count;
    }
    std::fprintf(stderr, "emu:   %d threads, the first (%u,%u,%u), wait in %s at %s:%u\n", count,
                 first.index.x, first.index.y, first.index.z, first.waits_in, BaseName(first.site),
                 first.site.line());
  }
  std::abort();
}

void Block::ThreadMain() {
  Fiber::Entered();
  Block& block = Get();
  OrderAfter(&block.begin_);
  (*block.body_)();
  Thread& me = *block.current_;
  if (!me.copies.empty()) Fail("a thread exits with asynchronous copies that it did not wait for");
  OrderBefore(&block.end_);
  me.alive = false;
  block.warps_[static_cast<std::size_t>(me.warp)].exited |= 1U << me.lane;
  if (--block.alive_ == 0) {
    block.current_ = nullptr;
    Fiber::Switch(me.fiber, block.host_, true);
  } else {
    Thread* next = block.Pop();
    if (next == nullptr) block.ReportDeadlock();
    block.SwitchTo(*next, true);
  }
  std::abort();  // not reached
}

void Block::StartThreads() {
  const auto size = static_cast<std::size_t>(size_);
  while (threads_.size() < size) threads_.push_back(std::make_unique<Thread>());
  warps_.resize((size + 31) / 32);
  for (Warp& warp : warps_) warp.lanes = warp.exited = 0;  // no meeting outlives its block
  barrier_.arrived = barrier_.agreed = 0;
  head_ = tail_ = kRing;  // not 0: Yield may step back before it
  for (int i = 0; i < size_; ++i) {
    Thread& thread = *threads_[static_cast<std::size_t>(i)];
    const auto linear = static_cast<unsigned>(i);
    thread.index = {linear % blockDim.x, linear / blockDim.x % blockDim.y,
                    linear / (blockDim.x * blockDim.y)};
    thread.warp = i / 32;
    thread.lane = i % 32;
    thread.alive = true;
    thread.copies.Reset();
    thread.fiber.Start(&Block::ThreadMain);
    warps_[static_cast<std::size_t>(thread.warp)].lanes |= 1U << thread.lane;
    Push(&thread);
  }
}

void Block::RunBlock(uint3 index, const std::function<void()>& body) {
  blockIdx = index;
  body_ = &body;
  alive_ = size_;
  StartThreads();
  OrderBefore(&begin_);
  host_.Adopt();
  SwitchTo(*Pop(), false);
  OrderAfter(&end_);
  shared_.CheckFences();
}

void Block::RunGrid(const LaunchShape& shape, const std::function<void()>& body) {
  gridDim = shape.grid;
  blockDim = shape.block;
  size_ = static_cast<int>(shape.block.x * shape.block.y * shape.block.z);
  const std::uint64_t plane = std::uint64_t{shape.grid.x} * shape.grid.y;
  const std::uint64_t count = plane * shape.grid.z;
  std::uint64_t step = 1, offset = 0;  // block number i * step + offset, modulo count
  if (order_ == ThreadOrder::kLifo) step = offset = count - 1;
  if (order_ == ThreadOrder::kRandom) {
    offset = Random() % count;
    do {
      step = 1 + Random() % count;
    } while (std::gcd(step, count) != 1);
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t number = (i % count * step + offset) % count;
    shared_.BeginBlock(shape.shared_bytes);
    RunBlock({static_cast<unsigned>(number % shape.grid.x),
              static_cast<unsigned>(number % plane / shape.grid.x),
              static_cast<unsigned>(number / plane)},
             body);
  }
}

int Block::SyncBlock(const char* name, bool predicate, const Site& site) {
  Barrier& barrier = barrier_;
  if (barrier.arrived == 0) {
    barrier.name = name;
    barrier.site = site;
  } else if (!SamePlace(barrier.site, site) || !SameText(barrier.name, name)) {
    FailAgainst(name, site, barrier.name, barrier.site);
  }
  const unsigned round = barrier.round;
  char* const order = &barrier.order[round % 2];
  OrderBefore(order);
  barrier.agreed += predicate ? 1 : 0;
  barrier.threads[barrier.arrived++] = current_;
  if (barrier.arrived == size_) {
    for (int i = 0; i + 1 < size_; ++i) Push(barrier.threads[i]);
    barrier.result = barrier.agreed;
    barrier.arrived = barrier.agreed = 0;
    ++barrier.round;
    Push(current_);
    SwitchTo(*Pop(), false);  // the last to arrive need not be the first to go on
  } else {
    Wait(name, site);
  }
  OrderAfter(order);
  return barrier.result;  // of this round: nobody completes the next before all have left
}

void Block::CheckWarpCall(const Warp& warp, const WarpCall& call, const Site& site) {
  const unsigned me = 1U << current_->lane;
  if ((call.mask & me) == 0) Fail("warp collective: the calling lane is not in its mask", site);
  if ((call.mask & warp.exited) != 0) {
    Fail("warp collective: the mask names a lane that has exited", site);
  }
  if (call.aligned && (call.mask & warp.lanes) != ~0U) {
    Fail("warp collective: needs all 32 lanes, the block's last warp has fewer", site);
  }
}

Block::Meeting& Block::MeetingOf(Warp& warp, unsigned mask, const WarpCall& call,
                                 const Site& site) {
  Meeting* found = nullptr;
  for (Meeting& meeting : warp.meetings) {
    if (meeting.arrived == 0) {
      if (found == nullptr || meeting.mask == mask) found = &meeting;
    } else if (meeting.mask == mask) {
      if (!SameText(meeting.name, call.name) || (call.aligned && !SamePlace(meeting.site, site))) {
        FailAgainst(call.name, site, meeting.name, meeting.site);
      }
      return meeting;
    }
  }
  if (found == nullptr) Fail("a warp waits with more than 8 different masks", site);
  found->mask = mask;
  found->name = call.name;
  found->site = site;
  return *found;
}

void Block::SyncWarp(const WarpCall& call, void* argument, const Site& site) {
  Warp& warp = warps_[static_cast<std::size_t>(current_->warp)];
  CheckWarpCall(warp, call, site);
  const unsigned mask = call.mask & warp.lanes;
  Meeting& meeting = MeetingOf(warp, mask, call, site);
  char* const order = &meeting.order[meeting.round % 2];
  if (call.orders_memory) OrderBefore(order);
  const int lane = current_->lane;
  meeting.arrived |= 1U << lane;
  meeting.arguments[lane] = argument;
  meeting.threads[lane] = current_;
  if (meeting.arrived == mask) {
    if (call.complete != nullptr) call.complete(meeting.arguments, mask);
    for (int i = 0; i < 32; ++i) {
      if ((mask >> i & 1U) != 0) Push(meeting.threads[i]);
    }
    meeting.arrived = 0;
    ++meeting.round;
    SwitchTo(*Pop(), false);
  } else {
    Wait(call.name, site);
  }
  if (call.orders_memory) OrderAfter(order);
}

}  // namespace emu
