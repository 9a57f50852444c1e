// Two ops as one hand-over to the threads: units of either fill the other's gaps.
#include <cstdint>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/linear_jobs.h"
#include "kernels/cpu/ops.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

template <typename A, typename B>
void RunBoth(const A& a, const B& b, OpContext& context) {
  const std::int64_t count = a.units();
  context.pool.ParallelFor(count + b.units(), 1, [&](std::int64_t unit, std::int64_t, int worker) {
    if (unit < count) {
      a.Run(unit, worker);
    } else {
      b.Run(unit - count, worker);
    }
  });
}

}  // namespace

void NearAndOdds(const NearArgs& near, const LinearOddsArgs& odds, OpContext& context) {
  const OddsJob odds_job(odds, context);
  RunBoth(NearJob(near, context), odds_job, context);
  odds_job.Finish();
}

void Far(const FarFullArgs& full, const FarLinearArgs& linear, OpContext& context) {
  const FarLinearJob linear_job(linear, context);
  RunBoth(FarFullJob(full, context), linear_job, context);
  linear_job.Finish();
}

}  // namespace metattn::cpu::METATTN_ISA
