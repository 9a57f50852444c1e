// Far spans of the listed rows, merged into their partials. The work is in attention_tile.cc.
#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/run_jobs.h"

namespace metattn::cpu::METATTN_ISA {

AttentionJob FarFullJob(const FarFullArgs& args, OpContext& context) {
  const bool bf16 = Bf16Attention(context, args.pages.head_dim, args.scale);
  const AttentionPlan plan =
      PlanFar(args.rows, args.list, args.pages.heads,
              {args.group, context.pool.threads(), bf16 ? kBf16TileQueries : kTileQueries});
  const AttentionTask task = {.rows = args.rows,
                              .pages = args.pages,
                              .group = args.group,
                              .scale = args.scale,
                              .q = args.q.As<float>(),
                              .partial = args.partial,
                              .stats = nullptr,
                              .fresh = false,
                              .bf16 = bf16};
  return {plan, task, context};
}

void FarFull(const FarFullArgs& args, OpContext& context) {
  RunJob(FarFullJob(args, context), context);
}

}  // namespace metattn::cpu::METATTN_ISA
