// Mixtures: each mechanism's output of a row, weighted and summed.
#include <algorithm>
#include <cstdint>

#include "kernels/check_args.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/types.h"

namespace metattn::ref {
namespace {

// The partial triple of one row and query head.
struct Triple {
  float *o, *m, *l;
};

Triple At(const Partial& partial, std::int64_t index, int head_dim) {
  return {partial.o.As<float>() + index * head_dim, partial.m.As<float>() + index,
          partial.l.As<float>() + index};
}

void Copy(const Triple& from, const Triple& to, int head_dim) {
  std::copy_n(from.o, head_dim, to.o);
  *to.m = *from.m;
  *to.l = *from.l;
}

// One query head's step; `weight` is the mechanism's.
void Step(const MixArgs& args, std::int64_t index, float weight) {
  const int d = args.head_dim;
  const Triple row = At(args.partial, index, d), kept = At(args.kept, index, d);
  float* sum = args.sum.As<float>() + index * d;
  const bool first = args.step == Mechanism::kLocal;
  for (int i = 0; i < d; ++i) {
    const double share = double{weight} * row.o[i] / *row.l;
    sum[i] = static_cast<float>(first ? share : sum[i] + share);
  }
  if (first) Copy(row, kept, d);
  if (args.step == Mechanism::kFull) Copy(kept, row, d);
  if (args.step != Mechanism::kLinear) return;
  std::copy_n(sum, d, row.o);
  *row.m = 0;
  *row.l = 1;
}

}  // namespace

void RefKernels::Mix(const MixArgs& args, Stream&) {
  CheckArgs(args);
  if (args.tokens == 0 || args.heads == 0) return;
  const auto* decisions = args.decisions.As<std::uint8_t>();
  const auto* weights = args.weights.As<float>() + static_cast<int>(args.step);
  for (std::int64_t i = 0; i < args.tokens * args.heads; ++i) {  // (row, KV head)
    if (decisions[i] != kMixture) continue;
    for (int g = 0; g < args.group; ++g) {
      Step(args, i * args.group + g, weights[i * kMechanisms]);
    }
  }
}

}  // namespace metattn::ref
