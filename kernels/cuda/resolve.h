// The Args of kernels.h as device code wants them: Views become pointers. No checks, no ownership.
#pragma once

#include "kernels/cuda/params.h"
#include "kernels/kernels.h"

namespace metattn::cuda {

inline Rows Resolve(const AttentionRows& r) {
  using I = const std::int32_t;
  return {r.tokens,
          r.sequences,
          r.position.As<I>(),
          r.sequence.As<I>(),
          r.row_begin.As<I>(),
          r.near_begin.As<I>(),
          r.far_end.As<I>(),
          r.table_begin.As<I>(),
          r.blocks.As<I>(),
          r.sinks,
          r.linear_end.As<I>(),
          r.linear_begin,
          r.linear_all,
          r.state_slot.As<I>(),
          r.state_end.As<I>()};
}

inline Pages Resolve(const PageTable& p) {
  return {p.base.As<__nv_bfloat16>(), p.block_stride, p.heads, p.head_dim};
}

inline List Resolve(const WorkList& l) {
  return {l.rows.As<std::int32_t>(), l.counts.As<std::int32_t>(), l.capacity};
}

inline Triples Resolve(const Partial& p) {
  return {p.o.As<float>(), p.m.As<float>(), p.l.As<float>()};
}

inline LinearAttention Resolve(const LinearShape& s) {
  return {Resolve(s.rows),
          Resolve(s.pages),
          s.states.base.As<float>(),
          s.states.slot_stride,
          s.group,
          Features(s.map, s.pages.head_dim),
          s.map == FeatureMap::kHedgehog,
          s.w_k.As<const __nv_bfloat16>(),
          nullptr};
}

inline DispatchParams Resolve(const DispatchArgs& a) {
  const BucketViews bucket(a);
  return {a.bucket.capacity,
          a.bucket.group,
          a.bucket.head_dim,
          a.heads,
          a.head,
          static_cast<int>(a.step),
          a.helped.As<std::uint8_t>(),
          Resolve(a.list),
          a.q.As<float>(),
          Resolve(a.partial),
          bucket.count.As<std::int32_t>(),
          bucket.rows.As<std::int32_t>(),
          bucket.q.As<float>(),
          Resolve(Partial{bucket.o, bucket.m, bucket.l})};
}

inline ControlParams Resolve(const ControlArgs& a) {
  return {Resolve(a.rows),
          a.heads,
          a.group,
          a.width,
          ControlScalars(a.features, a.group),
          a.state_tokens,
          static_cast<int>(a.features),
          static_cast<int>(a.link),
          static_cast<int>(a.uncertain),
          a.epsilon,
          a.temperature,
          a.projected.As<float>(),
          Resolve(a.near),
          a.near_stats.As<float>(),
          a.lse_far.As<float>(),
          a.x.As<__nv_bfloat16>(),
          a.dim,
          a.last_position,
          a.scalar_mean.As<float>(),
          a.scalar_scale.As<float>(),
          a.scalars.As<float>(),
          a.bias.As<float>(),
          a.out.As<float>(),
          a.out_bias.As<float>(),
          a.scalars_skip.As<float>(),
          a.offset.As<float>(),
          a.route.As<std::uint8_t>(),
          a.cost_weight.As<float>(),
          a.eta.As<float>(),
          a.decisions.As<std::uint8_t>(),
          a.uncertainty.As<float>(),
          a.margin.As<float>(),
          a.weights.As<float>()};
}

}  // namespace metattn::cuda
