// phi(q) of rows, and what linear attention would weigh: lse = log(phi(q) z) + g + kappa (m + log
// l).
//
// A warp makes phi of 16 rows of the step for one query head on tensor cores (feature_tile.h), up
// to four warps a block, so that W_q of the head, which they all read, is in L1. Each q is the sum
// of two values in bf16, which leaves 2^-18 of it: decisions rest on these weights. Features are
// written once, in f32, and multiplied with z of the row's state where they are made.
//
// Bytes moved: q d * 4, phi(q) f * 4 and z f * 4 a query; W_q once a block of 64 rows.
#include "kernels/cuda/feature_tile.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/linear_features.h"
#include "kernels/cuda/linear_state.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {
namespace {

constexpr int kMaxWarps = 4;

// One query of a tile: a row of the step and a query head.
struct Query {
  std::int64_t index;
  bool eligible;

  GPU_INLINE Query(const LinearAttention& a, std::int64_t t, int q_head)
      : index(t * a.pages.heads * a.group + q_head),
        eligible(t < a.rows.tokens && Eligible(a.rows, t)) {}
};

// x = high + low + 2^-18 x or less, both in bf16, for a pair.
struct SplitPair {
  std::uint32_t high, low;

  GPU_INLINE SplitPair(float x, float y) : high(gpu::pack_bf16(x, y)) {
    const float2 rounded = gpu::unpack_bf16(high);
    low = gpu::pack_bf16(x - rounded.x, y - rounded.y);
  }
};

// 8 columns of a row of q, zeros past d.
GPU_INLINE void LoadSplit(const float* q, int column, int d, uint4& high, uint4& low) {
  float x[kLaneColumns];
  if (d % kLaneColumns == 0 && column < d) {
    *reinterpret_cast<float4*>(x) = *reinterpret_cast<const float4*>(q + column);
    *reinterpret_cast<float4*>(x + 4) = *reinterpret_cast<const float4*>(q + column + 4);
  } else {
#pragma unroll
    for (int i = 0; i < kLaneColumns; ++i) x[i] = column + i < d ? q[column + i] : 0.0F;
  }
  const SplitPair a(x[0], x[1]), b(x[2], x[3]), c(x[4], x[5]), e(x[6], x[7]);
  high = {a.high, b.high, c.high, e.high};
  low = {a.low, b.low, c.low, e.low};
}

// y = W q, or q, of the lane's two queries; zeros for those that are not eligible.
template <int kDim>
GPU_INLINE void Project(const OddsParams& p, const Query (&queries)[2], int q_head,
                        FeatureTile<kDim>& tile) {
  const LinearAttention& a = p.shape;
  const int d = a.pages.head_dim;
  if (!a.hedgehog) {
    tile.Take(d, [&](int half, int column) {
      return queries[half].eligible ? p.q[queries[half].index * d + column] : 0.0F;
    });
    return;
  }
  tile.template Project<2>(
      p.w_q + std::int64_t{q_head} * d * d, d, [&](int column, std::uint32_t(&x)[2][2][4]) {
        uint4 high[2] = {}, low[2] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          if (!queries[half].eligible) continue;
          LoadSplit(p.q + queries[half].index * d, column, d, high[half], low[half]);
        }
        PutOperands(high[0], high[1], x[0]);
        PutOperands(low[0], low[1], x[1]);
      });
}

// Writes phi(q) of the lane's queries; z: of their states (null: no keys). Gives phi(q) z, the same
// in the four lanes of a row.
template <int kDim>
GPU_INLINE void PutFeatures(const OddsParams& p, const Query (&queries)[2],
                            const float* const (&z)[2], FeatureTile<kDim>& tile,
                            float (&weight)[2]) {
  const LinearAttention& a = p.shape;
  const int d = a.pages.head_dim, f = a.features;
  ForEachFeature(tile, a.hedgehog, d, [&](int feature, const float(&phi)[4]) {
    if (feature < 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!queries[half].eligible) continue;
      const float2 pair = {phi[2 * half], phi[2 * half + 1]};
      *reinterpret_cast<float2*>(p.phi_q + queries[half].index * f + feature) = pair;
      if (z[half] == nullptr) continue;
      const float2 sum = *reinterpret_cast<const float2*>(z[half] + feature);
      weight[half] = fmaf(pair.x, sum.x, fmaf(pair.y, sum.y, weight[half]));
    }
  });
  weight[0] = gpu::warp_sum<4>(weight[0]);
  weight[1] = gpu::warp_sum<4>(weight[1]);
}

// z of the state that the row reads; null: no keys, or not eligible.
GPU_INLINE const float* RowSums(const LinearAttention& a, std::int64_t t, int head, bool eligible) {
  if (!eligible) return nullptr;
  const float* state = RowState(a, a.rows.sequence[t], head, WholeBlocks(a.rows.linear_end[t]));
  return state == nullptr ? nullptr : state + a.features * a.pages.head_dim;
}

// Adds the keys of the warp's rows past their states, row by row.
GPU_INLINE void AddTails(const OddsParams& p, std::int64_t first_row, int q_head, float* phi_k,
                         float (&weight)[2]) {
  const LinearAttention& a = p.shape;
  __syncwarp();  // phi(q) is read by other lanes than wrote it
  for (int r = 0; r < kTileRows; ++r) {
    const std::int64_t t = first_row + r;
    const Query query(a, t, q_head);
    if (!query.eligible) continue;
    const std::int64_t end = a.rows.linear_end[t], whole = WholeBlocks(end);
    if (whole == end) continue;
    const float tail =
        TailWeight(a, {a.rows.sequence[t], q_head / a.group}, {whole, end},
                   p.phi_q + query.index * a.features, phi_k, [](float, const gpu::bf16*) {});
    if (r == gpu::lane_index() / 4) weight[0] += tail;
    if (r == gpu::lane_index() / 4 + 8) weight[1] += tail;
  }
}

template <int kDim>
__global__ void __launch_bounds__(kMaxWarps* gpu::kWarpLanes, 1) OddsKernel(OddsParams p) {
  GPU_DYN_SMEM(shared);
  const LinearAttention& a = p.shape;
  const int q_head = static_cast<int>(blockIdx.y), lane = gpu::lane_index();
  const int warps = static_cast<int>(blockDim.x / gpu::kWarpLanes);
  const std::int64_t first_row = (std::int64_t{blockIdx.x} * warps + gpu::warp_index()) * kTileRows;
  const std::int64_t rows[2] = {first_row + lane / 4, first_row + lane / 4 + 8};
  const Query queries[2] = {Query(a, rows[0], q_head), Query(a, rows[1], q_head)};
  float weight[2] = {};
  if (__any_sync(gpu::kFullWarp, queries[0].eligible || queries[1].eligible) != 0) {
    FeatureTile<kDim> tile;
    Project<kDim>(p, queries, q_head, tile);
    const int head = q_head / a.group;
    const float* const z[2] = {RowSums(a, rows[0], head, queries[0].eligible),
                               RowSums(a, rows[1], head, queries[1].eligible)};
    PutFeatures<kDim>(p, queries, z, tile, weight);
    AddTails(p, first_row, q_head,
             reinterpret_cast<float*>(shared) + gpu::warp_index() * a.features, weight);
  }
  if (lane % 4 != 0) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Query& query = queries[half];
    if (rows[half] >= a.rows.tokens) continue;
    p.lse_far[query.index] =
        query.eligible ? logf(weight[half]) + p.log_gain[q_head] +
                             p.kappa[q_head] * (p.near.m[query.index] + logf(p.near.l[query.index]))
                       : -INFINITY;
  }
}

}  // namespace

cudaError_t LaunchOdds(const OddsParams& p, cudaStream_t stream) {
  const LinearAttention& a = p.shape;
  if (const cudaError_t e = LaunchBoundaries(a, stream); e != cudaSuccess) return e;
  if (a.rows.tokens == 0 || a.pages.heads == 0 || a.group == 0) return cudaSuccess;
  const std::int64_t tiles = (a.rows.tokens + kTileRows - 1) / kTileRows;
  const auto warps = static_cast<unsigned>(tiles < kMaxWarps ? tiles : kMaxWarps);
  const dim3 grid(static_cast<unsigned>((tiles + warps - 1) / warps),
                  static_cast<unsigned>(a.pages.heads * a.group));
  const std::size_t shared = sizeof(float) * warps * static_cast<unsigned>(a.features);
  return ForTileDim(a.pages.head_dim, [&]<int kDim>() {
    return gpu::launch(OddsKernel<kDim>, grid, dim3(warps * gpu::kWarpLanes), shared, stream, p);
  });
}

}  // namespace metattn::cuda
