// Jobs: work cut into units that any thread may take in any order (`units()`, `Run(unit, worker)`).
//
// Borrows jobs and context for the call; one caller per OpContext. No errors. Included only by
// sources compiled with -DMETATTN_ISA. Cost: one hand-over to the threads.
#pragma once

#include <cstdint>

#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

template <typename Job>
void RunJob(const Job& job, OpContext& context) {
  context.pool.ParallelFor(
      job.units(), 1, [&](std::int64_t unit, std::int64_t, int worker) { job.Run(unit, worker); });
}

// A unit of one of two lists.
struct ListedUnit {
  bool second;
  std::int64_t unit;
};

// Unit `unit` of two lists, `first` units long and `all` together, in such an order that every
// thread's share has its part of the first list and then of the second one. The first should have
// the longer units: what is left to share at the end is short then.
METATTN_INLINE ListedUnit UnitOfLists(std::int64_t unit, std::int64_t first, std::int64_t all,
                                      std::int64_t threads) {
  std::int64_t share = threads - 1;
  while (unit < ThreadPool::ShareBegin(all, threads, share)) --share;
  const std::int64_t at = unit - ThreadPool::ShareBegin(all, threads, share);
  const std::int64_t begin = ThreadPool::ShareBegin(first, threads, share);
  const std::int64_t end = ThreadPool::ShareBegin(first, threads, share + 1);
  if (at < end - begin) return {false, begin + at};
  return {true, unit - end};  // `end` units of the first list come before it
}

// Two jobs that do not wait for one another, at once: units of either fill the other's gaps.
template <typename A, typename B>
void RunJobs(const A& a, const B& b, OpContext& context) {
  const std::int64_t all = a.units() + b.units();
  context.pool.ParallelFor(all, 1, [&](std::int64_t unit, std::int64_t, int worker) {
    const ListedUnit of = UnitOfLists(unit, a.units(), all, context.pool.threads());
    of.second ? b.Run(of.unit, worker) : a.Run(of.unit, worker);
  });
}

}  // namespace metattn::cpu::METATTN_ISA
