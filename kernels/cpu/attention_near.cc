// Near partial over sinks and window, and the final o / l. The work is in attention_tile.cc.
#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/run_jobs.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

AttentionJob NearJob(const NearArgs& args, OpContext& context) {
  const bool bf16 = Bf16Attention(context, args.pages.head_dim, args.scale);
  const AttentionPlan plan =
      PlanNear(args.rows, args.pages.heads,
               {args.group, context.pool.threads(), bf16 ? kBf16TileQueries : kTileQueries});
  const AttentionTask task = {.rows = args.rows,
                              .pages = args.pages,
                              .group = args.group,
                              .scale = args.scale,
                              .q = args.q.As<float>(),
                              .partial = args.out,
                              .stats = args.stats.As<float>(),
                              .fresh = true,
                              .bf16 = bf16};
  return {plan, task, context};
}

void Near(const NearArgs& args, OpContext& context) { RunJob(NearJob(args, context), context); }

void Normalize(const NormalizeArgs& args, OpContext& context) {
  constexpr std::int64_t kChunk = 64;
  const int d = args.head_dim;
  const auto* all_o = args.partial.o.As<float>();
  const auto* l = args.partial.l.As<float>();
  auto* all_out = args.out.As<float>();
  context.pool.ParallelFor(args.tokens * args.heads, kChunk,
                           [&](std::int64_t begin, std::int64_t end, int) {
                             for (std::int64_t i = begin; i < end; ++i) {
                               const float* o = all_o + i * d;
                               float* out = all_out + i * d;
                               const F32v factor = Div(Set(1.0f), Set(l[i]));
                               for (int j = 0; j < d; j += kLanes) {
                                 const int n = Smaller(kLanes, d - j);
                                 StoreN(out + j, Mul(LoadN(o + j, n), factor), n);
                               }
                             }
                           });
}

}  // namespace metattn::cpu::METATTN_ISA
