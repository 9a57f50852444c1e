// The index of the largest value of each row: maxima of chunks in vectors, then a search in the
// first chunk that has the largest one.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr std::int64_t kChunkValues = 1024;
constexpr int kMaxima = 4;

// -inf where there is nothing but NaN.
float MaxOf(const float* x, std::int64_t count) {
  F32v maxima[kMaxima];
  for (F32v& m : maxima) m = Set(kMinusInfinity);
  std::int64_t i = 0;
  for (; i + kMaxima * kLanes <= count; i += kMaxima * kLanes) {
#pragma GCC unroll 4
    for (int m = 0; m < kMaxima; ++m) maxima[m] = Max(Load(x + i + m * kLanes), maxima[m]);
  }
  float max = ReduceMax(Max(Max(maxima[0], maxima[1]), Max(maxima[2], maxima[3])));
  for (; i < count; ++i) {
    if (x[i] > max) max = x[i];
  }
  return max;
}

Largest LargestOf(const float* x, std::int64_t dim) {
  Largest best = {kMinusInfinity, 0};
  std::int64_t chunk = 0;
  for (std::int64_t begin = 0; begin < dim; begin += kChunkValues) {
    const float max = MaxOf(x + begin, Smaller(kChunkValues, dim - begin));
    if (max > best.value) {
      best.value = max;
      chunk = begin;
    }
  }
  if (best.value == kMinusInfinity) return best;
  while (x[chunk] != best.value) ++chunk;
  best.index = static_cast<std::int32_t>(chunk);
  return best;
}

}  // namespace

void ArgMax(const ArgMaxArgs& args, OpContext& context) {
  const auto* x = args.x.As<float>();
  auto* out = args.out.As<Largest>();
  context.pool.ParallelFor(args.rows, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin; row < end; ++row) {
      out[row] = LargestOf(x + row * args.dim, args.dim);
    }
  });
}

}  // namespace metattn::cpu::METATTN_ISA
