// residual += delta; out = residual / sqrt(mean(residual^2) + eps) * weight, row by row. The sum of
// squares is taken in four vectors in one fixed order, so a row does not depend on its batch.
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr std::int64_t kNormChunkValues = 8192;
constexpr int kSums = 4;

// Adds delta (may be null) to the row and returns the sum of its squares.
float AddAndSquare(float* row, const float* delta, std::int64_t dim) {
  F32v sums[kSums] = {Zero(), Zero(), Zero(), Zero()};
  std::int64_t i = 0;
  for (; i + kSums * kLanes <= dim; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (int s = 0; s < kSums; ++s) {
      float* at = row + i + s * kLanes;
      F32v v = Load(at);
      if (delta != nullptr) {
        v = Add(v, Load(delta + i + s * kLanes));
        Store(at, v);
      }
      sums[s] = Fma(v, v, sums[s]);
    }
  }
  for (; i < dim; i += kLanes) {
    const int n = static_cast<int>(Smaller<std::int64_t>(kLanes, dim - i));
    F32v v = LoadN(row + i, n);
    if (delta != nullptr) {
      v = Add(v, LoadN(delta + i, n));
      StoreN(row + i, v, n);
    }
    sums[0] = Fma(v, v, sums[0]);
  }
  return ReduceAdd(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

void Scale(const float* row, const float* weight, float factor, float* out, std::int64_t dim) {
  const F32v f = Set(factor);
  std::int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    Store(out + i, Mul(Mul(Load(row + i), f), Load(weight + i)));
  }
  if (i < dim) {
    const int n = static_cast<int>(dim - i);
    StoreN(out + i, Mul(Mul(LoadN(row + i, n), f), LoadN(weight + i, n)), n);
  }
}

}  // namespace

void Norm(const NormArgs& args, OpContext& context) {
  auto* residual = args.residual.As<float>();
  const auto* delta = args.delta.As<float>();
  const auto* weight = args.weight.As<float>();
  auto* out = args.out.As<float>();
  const std::int64_t dim = args.dim;
  if (dim == 0) return;
  const std::int64_t chunk = kNormChunkValues / dim + 1;
  context.pool.ParallelFor(args.tokens, chunk, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* add = delta == nullptr ? nullptr : delta + t * dim;
      const float squares = AddAndSquare(residual + t * dim, add, dim);
      const float factor = 1.0f / __builtin_sqrtf(squares / static_cast<float>(dim) + args.eps);
      Scale(residual + t * dim, weight, factor, out + t * dim, dim);
    }
  });
}

}  // namespace metattn::cpu::METATTN_ISA
