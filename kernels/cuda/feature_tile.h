// The feature map phi of 16 rows, on tensor cores: y = x W^T by mma, then exponentials.
//
//   elu1      phi(x) = elu(x) + 1, f = d      hedgehog  y = W x, phi(x) = [softmax(y); softmax(-y)]
//
// A warp holds 16 rows x kDim outputs: a lane has rows lane / 4 and lane / 4 + 8 (half 0 and 1)
// and, of each 8 outputs, two neighbours. W [d, d] (rows are outputs) and x are read where they
// lie, with no shared memory between: a lane takes 8 neighbouring columns, 16 bytes, of its row of
// x and of W, and they serve two products of depth 16. Which columns a product multiplies does not
// matter as long as both operands agree, and a load of a warp covers 64 bytes of each of 8 rows.
//
// A row's features depend on the row alone. Whole warps call; W and keys are bf16 as stored, so
// that products are exact and only their sums round.
#pragma once

#include <cmath>

#include "kernels/cuda/gpu.h"

namespace metattn::cuda {

inline constexpr int kTileRows = 16;
inline constexpr int kLaneColumns = 8;
inline constexpr int kStepColumns = 4 * kLaneColumns;  // of x and W, two products deep

// Columns column .. column + 7 of a row of d values, zeros past d; 16 bytes at once where rows are
// aligned to them, else pairs (d is even).
GPU_INLINE uint4 LoadColumns(const gpu::bf16* row, int column, int d) {
  if (d % kLaneColumns == 0) {
    return column < d ? *reinterpret_cast<const uint4*>(row + column) : uint4{0, 0, 0, 0};
  }
  const auto pair = [&](int i) {
    return column + i < d ? *reinterpret_cast<const std::uint32_t*>(row + column + i) : 0U;
  };
  return {pair(0), pair(2), pair(4), pair(6)};
}

// 8 columns of the lane's two rows as the operands of two products.
GPU_INLINE void PutOperands(const uint4& low, const uint4& high, std::uint32_t (&a)[2][4]) {
  a[0][0] = low.x;
  a[0][1] = high.x;
  a[0][2] = low.y;
  a[0][3] = high.y;
  a[1][0] = low.z;
  a[1][1] = high.z;
  a[1][2] = low.w;
  a[1][3] = high.w;
}

// The sum over the warp's 16 rows: over the lanes that hold the same columns.
GPU_INLINE float ColumnSum(float x) {
#pragma unroll
  for (int step = 4; step < gpu::kWarpLanes; step *= 2) {
    x += __shfl_xor_sync(gpu::kFullWarp, x, step);
  }
  return x;
}

template <int kDim>
struct FeatureTile {
  static constexpr int kOutputs = kDim / 8;  // of a lane, by pairs
  float y[kOutputs][4] = {};

  // y = x W^T. load(column, a) fills the operands of x's columns from `column` on, for two products
  // each: of kAddends addends that x is the sum of.
  template <int kAddends, typename Load>
  GPU_INLINE void Project(const gpu::bf16* w, int d, const Load& load) {
    const int lane = gpu::lane_index();
    for (int step = 0; step < d; step += kStepColumns) {
      const int column = step + lane % 4 * kLaneColumns;
      std::uint32_t a[kAddends][2][4];
      load(column, a);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
        const int output = 8 * n + lane / 4;
        const uint4 b = output < d ? LoadColumns(w + output * d, column, d) : uint4{0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < kAddends; ++i) {
          gpu::mma_bf16_16816(y[n], a[i][0], b.x, b.y);
          gpu::mma_bf16_16816(y[n], a[i][1], b.z, b.w);
        }
      }
    }
  }

  // y = x: value(half, column) is the lane's row.
  template <typename Value>
  GPU_INLINE void Take(int d, const Value& value) {
#pragma unroll
    for (int n = 0; n < kOutputs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = Column(n) + i % 2;
        y[n][i] = column < d ? value(i / 2, column) : 0.0F;
      }
    }
  }

  // y becomes elu(y) + 1.
  GPU_INLINE void Elu() {
#pragma unroll
    for (int n = 0; n < kOutputs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) y[n][i] = y[n][i] > 0 ? y[n][i] + 1.0F : expf(y[n][i]);
    }
  }

  // The first of the lane's two columns of output pair n.
  GPU_INLINE static int Column(int n) { return 8 * n + gpu::lane_index() % 4 * 2; }
};

// softmax(sign * y) of the lane's two rows over their first d outputs.
struct TileExponentials {
  float sign, largest[2], factor[2];

  template <int kDim>
  GPU_INLINE TileExponentials(const FeatureTile<kDim>& tile, float of_sign, int d)
      : sign(of_sign), largest{-INFINITY, -INFINITY} {
    float sum[2] = {};
#pragma unroll
    for (int n = 0; n < tile.kOutputs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (tile.Column(n) < d) largest[i / 2] = fmaxf(largest[i / 2], sign * tile.y[n][i]);
      }
    }
    largest[0] = gpu::warp_max<4>(largest[0]);
    largest[1] = gpu::warp_max<4>(largest[1]);
#pragma unroll
    for (int n = 0; n < tile.kOutputs; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (tile.Column(n) < d) sum[i / 2] += Exponential(i / 2, tile.y[n][i]);
      }
    }
    factor[0] = 1.0F / gpu::warp_sum<4>(sum[0]);
    factor[1] = 1.0F / gpu::warp_sum<4>(sum[1]);
  }

  GPU_INLINE float operator()(int half, float y) const {
    return Exponential(half, y) * factor[half];
  }

 private:
  GPU_INLINE float Exponential(int half, float y) const {
    return gpu::exp_fast(sign * y - largest[half]);
  }
};

// visit(first feature of the pairs, their values as in y[n]) for every pair of columns that the
// lane has, alike for all lanes: features past f (when d is no multiple of 8) come with value 0.
template <int kDim, typename Visit>
GPU_INLINE void ForEachFeature(FeatureTile<kDim>& tile, bool hedgehog, int d, const Visit& visit) {
  if (!hedgehog) tile.Elu();
  const auto pass = [&](int first, const auto& phi) {
#pragma unroll
    for (int n = 0; n < tile.kOutputs; ++n) {
      if (8 * n >= d) continue;
      const int column = tile.Column(n);
      float values[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = column < d ? phi(i / 2, tile.y[n][i]) : 0.0F;
      visit(column < d ? first + column : -1, values);
    }
  };
  if (!hedgehog) {
    pass(0, [](int, float y) { return y; });
    return;
  }
  pass(0, TileExponentials(tile, 1.0F, d));
  pass(d, TileExponentials(tile, -1.0F, d));
}

}  // namespace metattn::cuda
