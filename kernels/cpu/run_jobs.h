// Jobs: work cut into units that any thread may take in any order (`units()`, `Run(unit, worker)`).
//
// Borrows jobs and context for the call; one caller per OpContext. No errors. Included only by
// sources compiled with -DMETATTN_ISA. Cost: one hand-over to the threads.
#pragma once

#include <cstdint>

#include "kernels/cpu/op_table.h"

namespace metattn::cpu::METATTN_ISA {

template <typename Job>
void RunJob(const Job& job, OpContext& context) {
  context.pool.ParallelFor(
      job.units(), 1, [&](std::int64_t unit, std::int64_t, int worker) { job.Run(unit, worker); });
}

// Two jobs that do not wait for one another, at once: units of either fill the other's gaps.
template <typename A, typename B>
void RunJobs(const A& a, const B& b, OpContext& context) {
  const std::int64_t count = a.units();
  context.pool.ParallelFor(count + b.units(), 1, [&](std::int64_t unit, std::int64_t, int worker) {
    if (unit < count) {
      a.Run(unit, worker);
    } else {
      b.Run(unit - count, worker);
    }
  });
}

}  // namespace metattn::cpu::METATTN_ISA
