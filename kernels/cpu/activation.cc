// out = silu(gate) * up with silu(g) = g / (1 + exp(-g)).
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr std::int64_t kActivationChunkValues = 4096;

METATTN_INLINE F32v Silu(F32v g) { return Div(g, Add(Set(1.0f), Exp(Sub(Zero(), g)))); }

void SwiGluRow(const float* gate, const float* up, float* out, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    Store(out + i, Mul(Silu(Load(gate + i)), Load(up + i)));
  }
  if (i < n) {
    const int rest = static_cast<int>(n - i);
    StoreN(out + i, Mul(Silu(LoadN(gate + i, rest)), LoadN(up + i, rest)), rest);
  }
}

}  // namespace

void SwiGlu(const SwiGluArgs& args, OpContext& context) {
  const auto* in = args.gate_up.As<float>();
  auto* out = args.out.As<float>();
  const std::int64_t dim = args.dim;
  if (dim == 0) return;
  const std::int64_t chunk = kActivationChunkValues / dim + 1;
  context.pool.ParallelFor(args.tokens, chunk, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      SwiGluRow(in + t * 2 * dim, in + t * 2 * dim + dim, out + t * dim, dim);
    }
  });
}

}  // namespace metattn::cpu::METATTN_ISA
