// Near partial: exact softmax over the sinks and the row's window, and its statistics for the
// controller.
//
// One block a tile of neighbouring rows of one sequence (attention_tile.h), their query heads of
// one KV head packed into 16 rows a warp. A grid of (row, KV head, part of the group) covers what
// the host knows; a row that does not begin a tile ends its block at once. Tiles are of 64 query
// rows; in steps of few rows of 16, so that more blocks share the work. Bytes moved: K and V from
// the sinks and from the first row's window on to the last row, once a tile; q and the triples
// once.
#include <climits>

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_limit.h"

namespace metattn::cuda {
namespace {

constexpr std::int64_t kFewRows = 64;

// Log-sum-exp of a row in natural units from one lane's part of l; -infinity for an empty one.
GPU_INLINE float LogSumExp(float m, float l) {
  const float sum = gpu::warp_sum<4>(l);
  return sum > 0 ? fmaf(m, kLn2, logf(sum)) : -INFINITY;
}

template <int kDim, int kWarps>
__global__ void __launch_bounds__(kWarps* gpu::kWarpLanes, 1) NearKernel(NearParams p) {
  GPU_DYN_SMEM(shared);
  const int head = static_cast<int>(blockIdx.y), lane = gpu::lane_index();
  const int first = static_cast<int>(blockIdx.x), sequence = p.rows.sequence[first];
  const Packing packing(kWarps * kWarpRows, p.group, static_cast<int>(blockIdx.z));
  const int place = first % packing.rows;
  if (place > 0 && p.rows.sequence[first - 1] == sequence) return;
  const int left = p.rows.row_begin[sequence + 1] - first;
  const int count = left < packing.rows - place ? left : packing.rows - place;

  const int sinks = p.rows.sinks;
  int window = INT_MAX, past = 0;
  for (int i = lane; i < count; i += gpu::kWarpLanes) {
    const int begin = p.rows.near_begin[first + i], end = p.rows.position[first + i] + 1;
    window = begin < window ? begin : window;
    past = end > past ? end : past;
  }
  window = __reduce_min_sync(gpu::kFullWarp, window);
  past = __reduce_max_sync(gpu::kFullWarp, past);
  const int first_key = window > sinks ? window : sinks;
  // Keys before every row's window may never have been written: 0 times them must be 0.
  const Walk walk(sinks < past ? sinks : past, first_key, past, first_key);

  const auto row_of = [&](int r) {
    const int packed = gpu::warp_index() * kWarpRows + r, t = first + packed / packing.members;
    if (t >= first + count) return TileRow{-1, 0, 0, 0};
    const std::int64_t group = (std::int64_t{t} * p.pages.heads + head) * p.group;
    const int end = p.rows.position[t] + 1, begin = p.rows.near_begin[t];
    return TileRow{group + packing.first_member + packed % packing.members,
                   sinks < end ? sinks : end, begin > sinks ? begin : sinks, end};
  };
  auto* space = reinterpret_cast<gpu::bf16*>(shared);
  constexpr int kQueries = kWarpRows * TileSpace<kDim>::kPitch;
  const Queries<kDim> q(
      p.q, p.pages.head_dim, [&](int r) { return row_of(r).index; },
      space + gpu::warp_index() * kQueries);
  const TileRow rows[2] = {row_of(lane / 4), row_of(lane / 4 + 8)};
  TileSoftmax<kDim, true> softmax;
  float sink_lse[2] = {-INFINITY, -INFINITY};
  const TileWork<kDim> work{{p.rows, p.pages, sequence, head}, walk, q, {rows[0], rows[1]}, p.scale,
                            space + kWarps * kQueries};
  Attend<kDim, kWarps>(work, softmax, [&](int i) {
    if (i + 1 != walk.sink_tiles) return;
    sink_lse[0] = LogSumExp(softmax.m[0], softmax.l[0]);
    sink_lse[1] = LogSumExp(softmax.m[1], softmax.l[1]);
  });
  const std::int64_t index[2] = {rows[0].index, rows[1].index};
  softmax.Store(p.out, index, p.pages.head_dim);
  if (p.stats == nullptr) return;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float weighted = gpu::warp_sum<4>(softmax.weighted[half]);
    const float sum = gpu::warp_sum<4>(softmax.l[half]);
    if (index[half] < 0 || lane % 4 != 0) continue;
    if (!Eligible(p.rows, index[half] / (std::int64_t{p.pages.heads} * p.group))) continue;
    p.stats[2 * index[half]] = sink_lse[half];
    p.stats[2 * index[half] + 1] = weighted * kLn2 / sum;
  }
}

template <int kDim, int kWarps>
cudaError_t Launch(const NearParams& p, cudaStream_t stream) {
  constexpr int kCapacity = kWarps * kWarpRows;
  const dim3 grid(static_cast<unsigned>(p.rows.tokens), static_cast<unsigned>(p.pages.heads),
                  static_cast<unsigned>((p.group + kCapacity - 1) / kCapacity));
  const auto kernel = NearKernel<kDim, kWarps>;
  constexpr std::size_t kBytes = TileSpace<kDim>::Bytes(kWarps);
  if (const cudaError_t e = AllowShared(kernel, kBytes); e != cudaSuccess) return e;
  return gpu::launch(kernel, grid, dim3(kWarps * gpu::kWarpLanes), kBytes, stream, p);
}

}  // namespace

cudaError_t LaunchNear(const NearParams& p, cudaStream_t stream) {
  if (p.rows.tokens == 0 || p.pages.heads == 0 || p.group == 0) return cudaSuccess;
  return ForTileDim(p.pages.head_dim, [&]<int kDim>() {
    return p.rows.tokens <= kFewRows && p.group <= kWarpRows ? Launch<kDim, 1>(p, stream)
                                                             : Launch<kDim, 4>(p, stream);
  });
}

}  // namespace metattn::cuda
