// Mixtures: each mechanism's output of a row, weighted and summed. A unit is a few (row, KV head)
// pairs; lanes run along the head's dimensions. Bound by memory: a pair moves some 16 d bytes per
// query head and step, pairs that do not mix cost the reading of their decision.
#include <cstdint>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr std::int64_t kMixChunkPairs = 32;

class Mixer {
 public:
  explicit Mixer(const MixArgs& args) : args_(args), d_(args.head_dim) {}

  void Run(std::int64_t begin, std::int64_t end) const {
    const auto* decisions = args_.decisions.As<std::uint8_t>();
    const auto* weights = args_.weights.As<float>() + static_cast<int>(args_.step);
    for (std::int64_t pair = begin; pair < end; ++pair) {
      if (decisions[pair] != kMixture) continue;
      for (int g = 0; g < args_.group; ++g) {
        Step(pair * args_.group + g, weights[pair * kMechanisms]);
      }
    }
  }

 private:
  void Step(std::int64_t index, float weight) const {
    float* o = args_.partial.o.As<float>() + index * d_;
    float* m = args_.partial.m.As<float>() + index;
    float* l = args_.partial.l.As<float>() + index;
    float* kept = args_.kept.o.As<float>() + index * d_;
    float* kept_m = args_.kept.m.As<float>() + index;
    float* kept_l = args_.kept.l.As<float>() + index;
    float* sum = args_.sum.As<float>() + index * d_;
    const F32v factor = Set(weight / *l);
    for (int i = 0; i < d_; i += kLanes) {
      const int n = Smaller(kLanes, d_ - i);
      const F32v output = LoadN(o + i, n);
      switch (args_.step) {
        case Mechanism::kLocal:
          StoreN(sum + i, Mul(output, factor), n);
          StoreN(kept + i, output, n);
          break;
        case Mechanism::kFull:
          StoreN(sum + i, Fma(output, factor, LoadN(sum + i, n)), n);
          StoreN(o + i, LoadN(kept + i, n), n);
          break;
        case Mechanism::kLinear:
          StoreN(o + i, Fma(output, factor, LoadN(sum + i, n)), n);
          break;
      }
    }
    if (args_.step == Mechanism::kLocal) *kept_m = *m, *kept_l = *l;
    if (args_.step == Mechanism::kFull) *m = *kept_m, *l = *kept_l;
    if (args_.step == Mechanism::kLinear) *m = 0.0f, *l = 1.0f;
  }

  const MixArgs& args_;
  const int d_;
};

}  // namespace

void Mix(const MixArgs& args, OpContext& context) {
  if (args.tokens == 0 || args.heads == 0) return;
  context.pool.ParallelFor(
      args.tokens * args.heads, kMixChunkPairs,
      [&](std::int64_t begin, std::int64_t end, int) { Mixer(args).Run(begin, end); });
}

}  // namespace metattn::cpu::METATTN_ISA
