// Ops of softmax and of linear attention that do not wait for one another, as one hand-over.
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/linear_jobs.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/run_jobs.h"

namespace metattn::cpu::METATTN_ISA {

void NearAndOdds(const NearArgs& near, const LinearOddsArgs& odds, OpContext& context) {
  const OddsJob odds_job(odds, context);
  RunJobs(NearJob(near, context), odds_job, context);
  odds_job.Finish();
}

void Far(const FarFullArgs& full, const FarLinearArgs& linear, OpContext& context) {
  const FarLinearJob linear_job(linear, context);
  RunJobs(FarFullJob(full, context), linear_job, context);
  linear_job.Finish();
}

}  // namespace metattn::cpu::METATTN_ISA
