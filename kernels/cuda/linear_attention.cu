// Linear attention of the listed rows, merged into their near partials: value phi(q) S / phi(q) z,
// weight exp(lse).
//
// Rows whose keys end in the same block read the same state, at most 64 rows of a sequence. A block
// of 4 warps makes a tile of up to 64 queries of them (rows x query heads of one KV head's group,
// packed): phi(q) goes to shared memory in bf16, and the product [64, f] x [f, d] is made by mma of
// 16 x 8 x 16, each warp for a quarter of the dimensions and all queries, so that S, the larger
// operand by far, is read once a tile, by one warp each element, straight from L2: lanes take two
// neighbouring columns of four rows, 16 loads under way (a lone sequence in decode has only its KV
// heads' blocks to hide latency with), and round them to bf16. phi(q) z and the merge's factors are
// made in f32 when phi(q) is staged. Decode is the same with a group's queries in a tile.
//
// Shared memory: 64 (2 kDim + 8) * 2 of phi(q), f * 4 a warp for keys past the state, at most 73
// KiB. Bytes moved, a tile: S once, phi(q) f * 4 and o 2 d * 4 a query.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/linear_features.h"
#include "kernels/cuda/linear_state.h"
#include "kernels/cuda/packing.h"
#include "kernels/cuda/shared_limit.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * gpu::kWarpLanes;
constexpr int kQueries = 64;
constexpr int kTiles = kQueries / 16;

template <int kDim>
struct QuerySpace {
  static constexpr int kPitch = 2 * kDim + 8;
  static constexpr std::size_t kPhiBytes = sizeof(gpu::bf16) * kQueries * kPitch;
};

// Of each query of a tile: where its triple lies (-1: it weighs nothing) and what its o becomes:
// keep * o + gain * phi(q) S.
struct Factors {
  std::int64_t index[kQueries];
  float keep[kQueries], gain[kQueries];
};

// Listed rows that read one state; whole warps call.
struct StateRows {
  const std::int32_t* list;
  int listed, sequence;
  std::int64_t whole;
  const Rows& rows;

  GPU_INLINE StateRows(const FarLinearParams& p, int head, int at)
      : list(p.list.rows + head * p.list.capacity),
        listed(p.list.counts[head]),
        sequence(p.shape.rows.sequence[list[at]]),
        whole(WholeBlocks(p.shape.rows.linear_end[list[at]])),
        rows(p.shape.rows) {}

  // How many entries of the list from `at` on, in steps of `step` (1 or -1), are of these rows, at
  // most `most`.
  GPU_INLINE int Count(int at, int step, int most) const {
    int count = 0;
    while (count < most) {
      const int i = count + gpu::lane_index(), entry = at + step * i;
      const bool ours = i < most && entry >= 0 && entry < listed && Has(list[entry]);
      const int found = __popc(__ballot_sync(gpu::kFullWarp, ours));
      count += found;
      if (found < gpu::kWarpLanes) break;
    }
    return count;
  }

 private:
  GPU_INLINE bool Has(int row) const {
    return rows.sequence[row] == sequence && WholeBlocks(rows.linear_end[row]) == whole;
  }
};

// What a block works on.
struct Tile {
  const FarLinearParams& p;
  const StateRows& of;
  int head;
  const float* state;  // null: no keys
  float* phi_k;        // scratch of the warp
  Factors& factors;
};

// A query of a tile: its number there, its row of the step and where its triple lies.
struct TileQuery {
  int number, row;
  std::int64_t index;
};

// The keys of a row past its state, added to `tail` by similarity; gives their weight.
template <int kDims>
GPU_INLINE float AddTail(const Tile& tile, int row, const float* phi_q, Softmax<kDims>& tail) {
  const LinearAttention& a = tile.p.shape;
  const int d = a.pages.head_dim;
  const auto add = [&](float similarity, const gpu::bf16* v) {
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      const int i = j * gpu::kWarpLanes + gpu::lane_index();
      if (i < d) tail.o[j] = fmaf(similarity, __bfloat162float(v[i]), tail.o[j]);
    }
  };
  return TailWeight(a, {tile.of.sequence, tile.head}, {tile.of.whole, a.rows.linear_end[row]},
                    phi_q, tile.phi_k, add);
}

// By one warp, for one query: phi(q) to shared memory, m and l merged, o's factors. A row with keys
// past its state has them merged into o here.
template <int kDim>
GPU_INLINE void Stage(const Tile& tile, const TileQuery& query, gpu::bf16* phi) {
  const FarLinearParams& p = tile.p;
  const int d = p.shape.pages.head_dim, f = p.shape.features, lane = gpu::lane_index();
  const std::int64_t index = query.index;
  const float* phi_q = p.phi_q + index * f;
  float sum = 0;
  for (int i = 2 * lane; i < f; i += 2 * gpu::kWarpLanes) {
    const float2 pair = *reinterpret_cast<const float2*>(phi_q + i);
    *reinterpret_cast<std::uint32_t*>(phi + i) = gpu::pack_bf16(pair.x, pair.y);
    if (tile.state == nullptr) continue;
    const float2 z = *reinterpret_cast<const float2*>(tile.state + f * d + i);
    sum = fmaf(pair.x, z.x, fmaf(pair.y, z.y, sum));
  }
  float weight = gpu::warp_sum(sum);
  constexpr int kDims = kDim / gpu::kWarpLanes;
  Softmax<kDims> tail;
  const bool has_tail = p.shape.rows.linear_end[query.row] > tile.of.whole;
  if (has_tail) weight += AddTail<kDims>(tile, query.row, phi_q, tail);

  const Merging with(p.alone ? -INFINITY : p.partial.m[index], p.lse_far[index]);
  const float l = with.Sum(p.alone ? 0.0F : p.partial.l[index], 1.0F);
  const float keep = p.alone ? 0.0F : with.keep, gain = with.add / weight;
  if (has_tail) {
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      const int i = j * gpu::kWarpLanes + lane;
      if (i >= d) continue;
      float& o = p.partial.o[index * d + i];
      o = fmaf(gain, tail.o[j], keep == 0 ? 0.0F : keep * o);
    }
  }
  __syncwarp();  // all lanes have read m and l
  if (lane != 0) return;
  p.partial.m[index] = with.m;
  p.partial.l[index] = l;
  tile.factors.keep[query.number] = has_tail ? 1.0F : keep;
  tile.factors.gain[query.number] = gain;
}

// sums[tile][pair][j] += phi(q) [16 tiles, f] S [f, 16 pairs] of the dimensions from `first` on,
// where column c of product j is dimension 16 pair + 2 c + j.
template <int kDim, int kPairs>
GPU_INLINE void Multiply(const Tile& tile_of, const gpu::bf16* phi, int first, int tiles,
                         float (&sums)[kTiles][kPairs][2][4]) {
  constexpr int kAhead = 4 / kPairs;  // products' depths of S under way
  constexpr int kPitch = QuerySpace<kDim>::kPitch;
  const int d = tile_of.p.shape.pages.head_dim, f = tile_of.p.shape.features;
  const float* state = tile_of.state;
  const int lane = gpu::lane_index(), row = lane % 4 * 2, column = first + lane / 4 * 2;
  phi += lane % 16 * kPitch + lane / 16 * 8;
  const auto load = [&](int feature, int dimension) {
    return feature < f && dimension < d
               ? *reinterpret_cast<const float2*>(state + feature * d + dimension)
               : float2{0, 0};
  };
  for (int begin = 0; begin < f; begin += 16 * kAhead) {
    std::uint32_t b[kAhead][kPairs][2][2];
#pragma unroll
    for (int n = 0; n < kAhead * kPairs; ++n) {
      const int step = n / kPairs, pair = n % kPairs, c = column + 16 * pair;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int k = begin + 16 * step + row + 8 * i;
        const float2 x = load(k, c), y = load(k + 1, c);
        b[step][pair][0][i] = gpu::pack_bf16(x.x, y.x);
        b[step][pair][1][i] = gpu::pack_bf16(x.y, y.y);
      }
    }
#pragma unroll
    for (int n = 0; n < kAhead * kTiles; ++n) {
      const int step = n / kTiles, tile = n % kTiles, k = begin + 16 * step;
      if (tile >= tiles || k >= f) continue;
      std::uint32_t a[4];
      gpu::ldmatrix_x4(a, phi + 16 * tile * kPitch + k);
#pragma unroll
      for (int j = 0; j < 2 * kPairs; ++j) {
        const auto& product = b[step][j / 2][j % 2];
        gpu::mma_bf16_16816(sums[tile][j / 2][j % 2], a, product[0], product[1]);
      }
    }
  }
}

// o = keep o + gain sums, of the tile's queries.
template <int kPairs>
GPU_INLINE void MergeInto(const Tile& tile_of, int first, int tiles,
                          const float (&sums)[kTiles][kPairs][2][4]) {
  const int d = tile_of.p.shape.pages.head_dim, lane = gpu::lane_index();
  const Factors& factors = tile_of.factors;
#pragma unroll
  for (int i = 0; i < 2 * kTiles; ++i) {
    const int tile = i / 2, half = i % 2, q = 16 * tile + 8 * half + lane / 4;
    if (tile >= tiles || factors.index[q] < 0) continue;
    const float keep = factors.keep[q], gain = factors.gain[q];
    float* to = tile_of.p.partial.o + factors.index[q] * d;
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int dimension = first + 16 * pair + lane % 4 * 4 + 2 * c;
        if (dimension >= d) continue;
        float2& value = *reinterpret_cast<float2*>(to + dimension);
        const float2 was = keep == 0 ? float2{0, 0} : value;
        value = {fmaf(gain, sums[tile][pair][0][2 * half + c], keep * was.x),
                 fmaf(gain, sums[tile][pair][1][2 * half + c], keep * was.y)};
      }
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) FarLinearKernel(FarLinearParams p) {
  GPU_DYN_SMEM(shared);
  GPU_SHARED(Factors, factors, );
  const LinearAttention& a = p.shape;
  const int head = static_cast<int>(blockIdx.y), first = static_cast<int>(blockIdx.x);
  if (first >= p.list.counts[head]) return;
  const Packing packing(kQueries, a.group, static_cast<int>(blockIdx.z));
  const StateRows of(p, head, first);
  if (of.Count(first - 1, -1, kPageTokens) % packing.rows != 0) return;  // inside another's tile
  const int count = of.Count(first, 1, packing.rows) * packing.members;
  const int tiles = (count + 15) / 16, f = a.features, lane = gpu::lane_index();
  auto* const phi = reinterpret_cast<gpu::bf16*>(shared);
  auto* const phi_k = reinterpret_cast<float*>(shared + QuerySpace<kDim>::kPhiBytes);
  const Tile tile{
      p,      of, head, RowState(a, of.sequence, head, of.whole), phi_k + gpu::warp_index() * f,
      factors};
  for (int q = gpu::warp_index(); q < 16 * tiles; q += kWarps) {
    gpu::bf16* const to = phi + q * QuerySpace<kDim>::kPitch;
    const int row = q < count ? of.list[first + q / packing.members] : 0;
    const std::int64_t index = (std::int64_t{row} * a.pages.heads + head) * a.group +
                               packing.first_member + q % packing.members;
    const bool weighs = q < count && p.lse_far[index] != -INFINITY;
    if (lane == 0) factors.index[q] = weighs ? index : -1;
    // Zeros where nothing is staged, and past f up to a whole product.
    for (int i = (weighs ? f : 0) + lane; i < (f + 15) / 16 * 16; i += gpu::kWarpLanes) {
      to[i] = __float2bfloat16(0.0F);
    }
    if (weighs) Stage<kDim>(tile, {q, row, index}, to);
  }
  __syncthreads();
  constexpr int kPairs = kDim / kWarps / 16;
  const int columns = gpu::warp_index() * (kDim / kWarps);
  float sums[kTiles][kPairs][2][4] = {};
  if (tile.state != nullptr) Multiply<kDim, kPairs>(tile, phi, columns, tiles, sums);
  MergeInto<kPairs>(tile, columns, tiles, sums);
}

template <int kDim>
cudaError_t Launch(const FarLinearParams& p, cudaStream_t stream) {
  const LinearAttention& a = p.shape;
  const dim3 grid(static_cast<unsigned>(a.rows.tokens), static_cast<unsigned>(a.pages.heads),
                  static_cast<unsigned>((a.group + kQueries - 1) / kQueries));
  const std::size_t shared =
      QuerySpace<kDim>::kPhiBytes + sizeof(float) * kWarps * static_cast<unsigned>(a.features);
  if (const cudaError_t e = AllowShared(FarLinearKernel<kDim>, shared); e != cudaSuccess) return e;
  return gpu::launch(FarLinearKernel<kDim>, grid, dim3(kThreads), shared, stream, p);
}

}  // namespace

cudaError_t LaunchFarLinear(const FarLinearParams& p, cudaStream_t stream) {
  const LinearAttention& a = p.shape;
  if (!p.has_boundaries) {
    if (const cudaError_t e = LaunchBoundaries(a, stream); e != cudaSuccess) return e;
  }
  if (a.rows.tokens > 0 && a.pages.heads > 0 && a.group > 0) {
    const cudaError_t e =
        ForTileDim(a.pages.head_dim, [&]<int kDim>() { return Launch<kDim>(p, stream); });
    if (e != cudaSuccess) return e;
  }
  return LaunchStore(a, stream);
}

}  // namespace metattn::cuda
