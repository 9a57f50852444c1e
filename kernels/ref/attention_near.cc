// Near partial: exact softmax over the sinks and the row's window; and the final o / l.
#include <algorithm>

#include "kernels/check_args.h"
#include "kernels/ref/pages.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/ref/softmax.h"

namespace metattn::ref {

void RefKernels::Near(const NearArgs& args, Stream&) {
  CheckArgs(args);
  const int d = args.pages.head_dim, q_heads = args.pages.heads * args.group;
  const auto* position = args.rows.position.As<std::int32_t>();
  const auto* sequence = args.rows.sequence.As<std::int32_t>();
  const auto* near_begin = args.rows.near_begin.As<std::int32_t>();
  for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
    const std::int64_t end = std::int64_t{position[t]} + 1;
    const std::int64_t sinks_end = std::min<std::int64_t>(args.rows.sinks, end);
    for (int hq = 0; hq < q_heads; ++hq) {
      const std::int64_t index = t * q_heads + hq;
      const float* q = args.q.As<float>() + index * d;
      Triple triple(d);
      auto add = [&](std::int64_t p) {
        const Place place = Locate(args.rows, args.pages, sequence[t], hq / args.group, p);
        triple.Add(Score(q, place.k, d, args.scale), place.v);
      };
      for (std::int64_t p = 0; p < sinks_end; ++p) add(p);
      for (std::int64_t p = std::max(near_begin[t], args.rows.sinks); p < end; ++p) add(p);
      StoreTriple(triple, args.out.o.As<float>() + index * d, args.out.m.As<float>() + index,
                  args.out.l.As<float>() + index);
    }
  }
}

void RefKernels::Normalize(const NormalizeArgs& args, Stream&) {
  CheckArgs(args);
  const auto* o = args.partial.o.As<float>();
  const auto* l = args.partial.l.As<float>();
  auto* out = args.out.As<float>();
  for (std::int64_t i = 0; i < args.tokens * args.heads; ++i) {
    for (int j = 0; j < args.head_dim; ++j) {
      out[i * args.head_dim + j] = o[i * args.head_dim + j] / l[i];
    }
  }
}

}  // namespace metattn::ref
