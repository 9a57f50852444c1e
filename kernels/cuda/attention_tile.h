// Softmax attention of a tile of query rows over paged keys, on tensor cores.
//
// A warp holds 16 query rows (rows of the step x query heads of one KV head's group, packed) and
// walks tiles of 32 keys that lie on the grid of positions: S = Q K^T and O += P V by mma of 16 x 8
// x 16, with a running softmax in powers of 2. Q and P are rounded to bf16, K and V are bf16 as
// stored, scores, sums and O are f32; l adds P before it is rounded. 32 keys, because then S takes
// 16 registers beside the 64 (d = 128) or 128 (d = 256) of O, and a tile never crosses a page.
//
// The warps of a block share each tile of K and V, brought by cp.async while the one before is
// worked on: two stages. Rows in shared memory are padded by 16 bytes, so that the 8 rows of an
// ldmatrix lie in different banks. Shared memory: (16 warps + 128) (kDim + 8) 2 bytes, at most 99
// KiB. Bytes moved: each key and value once a block, whole 32 x d tiles up to the walk's end.
//
// A row's result depends on the row alone: a tile that the row does not see changes nothing, bit
// for bit, so neither its neighbours in a tile nor the number of warps matter. Products that are
// added to something are written as fmaf or __fmul_rn: else the compiler chooses, kernel by kernel,
// which of them to fuse.
#pragma once

#include <cmath>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/packing.h"
#include "kernels/cuda/pages.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {

inline constexpr int kWarpRows = 16;
inline constexpr int kTileKeys = 32;  // divides a page
inline constexpr float kLog2E = 1.4426950408889634F;
inline constexpr float kLn2 = 0.6931471805599453F;

// Dynamic shared memory: queries of each warp, then two stages of K and V; kDim >= d is a multiple
// of 16.
template <int kDim>
struct TileSpace {
  static constexpr int kPitch = kDim + 8;
  static constexpr int kStage = 2 * kTileKeys * kPitch;
  static constexpr std::size_t Bytes(int warps) {
    return sizeof(gpu::bf16) * static_cast<std::size_t>(warps * kWarpRows * kPitch + 2 * kStage);
  }
};

// One query row: which triple it is (-1: none) and the keys it sees, [0, sink_end) in the walk's
// first part and [begin, end) in its second.
struct TileRow {
  std::int64_t index;
  int sink_end, begin, end;
};

// The keys a block walks, in tiles: [0, sink_end), then [begin, end). Keys before `from` in the
// second part are not read; from = 0 reads tiles whole.
struct Walk {
  int sink_tiles, second, count;
  int sink_end, from, end;

  GPU_INLINE Walk(int sink_keys, int begin, int past, int first_read)
      : sink_tiles((sink_keys + kTileKeys - 1) / kTileKeys),
        second(begin / kTileKeys - sink_tiles),
        count(sink_tiles +
              (begin < past ? (past + kTileKeys - 1) / kTileKeys - begin / kTileKeys : 0)),
        sink_end(sink_keys),
        from(first_read),
        end(past) {}

  GPU_INLINE bool InSinks(int i) const { return i < sink_tiles; }
  GPU_INLINE int First(int i) const { return (InSinks(i) ? i : second + i) * kTileKeys; }
};

// Starts bringing the walk's tile number `tile`; zeros for keys that are not read and past d.
template <int kDim, int kThreads>
GPU_INLINE void LoadKeys(const Keys& keys, const Walk& walk, int tile, gpu::bf16* stage) {
  const int first = walk.First(tile);
  const int from = walk.InSinks(tile) ? 0 : walk.from;
  const int end = walk.InSinks(tile) ? walk.sink_end : walk.end;
  constexpr int kChunks = kDim / 8;
  constexpr int kPitch = TileSpace<kDim>::kPitch;
  const int d = keys.pages.head_dim, thread = static_cast<int>(threadIdx.x);
  const gpu::bf16* k = KeyAt(keys.rows, keys.pages, keys.sequence, keys.head, first);
  const auto row_at = [&](int row) {  // rows of K, then of V
    return k + (row / kTileKeys * kPageTokens + row % kTileKeys) * d;
  };
  const auto read = [&](int key) { return key >= from && key < end; };
  if (d % 8 == 0) {
    for (int i = thread; i < 2 * kTileKeys * kChunks; i += kThreads) {
      const int row = i / kChunks, c = i % kChunks * 8;
      gpu::cp_async16(stage + row * kPitch + c, row_at(row) + c,
                      read(first + row % kTileKeys) && c < d);
    }
  } else {  // rows are not aligned to 16 bytes
    for (int i = thread; i < 2 * kTileKeys * kDim; i += kThreads) {
      const int row = i / kDim, c = i % kDim;
      const bool valid = read(first + row % kTileKeys) && c < d;
      stage[row * kPitch + c] = valid ? row_at(row)[c] : __float2bfloat16(0.0F);
    }
  }
  gpu::cp_async_commit();
}

// The fragments of a warp's queries: in registers where they fit beside O.
template <int kDim>
struct Queries {
  static constexpr bool kHeld = kDim <= 128;
  const gpu::bf16* row;  // this lane's, for ldmatrix
  std::uint32_t held[kHeld ? kDim / 16 : 1][4];

  // Loads, rounds and keeps the rows index_of(0), ..., index_of(15) of q [., d] in the warp's part
  // of shared memory; index -1 gives zeros.
  template <typename IndexOf>
  GPU_INLINE Queries(const float* q, int d, const IndexOf& index_of, gpu::bf16* space) {
    constexpr int kPitch = TileSpace<kDim>::kPitch;
    const int lane = gpu::lane_index();
    for (int r = 0; r < kWarpRows; ++r) {
      const std::int64_t index = index_of(r);
      const float* x = q + index * d;
#pragma unroll
      for (int c = 2 * lane; c < kDim; c += 2 * gpu::kWarpLanes) {
        const float low = index >= 0 && c < d ? x[c] : 0.0F;
        const float high = index >= 0 && c + 1 < d ? x[c + 1] : 0.0F;
        *reinterpret_cast<std::uint32_t*>(space + r * kPitch + c) = gpu::pack_bf16(low, high);
      }
    }
    __syncwarp();
    row = space + lane % 16 * kPitch + lane / 16 * 8;
    if constexpr (kHeld) {
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k) gpu::ldmatrix_x4(held[k], row + 16 * k);
    }
  }

  GPU_INLINE void Get(int k, std::uint32_t (&a)[4]) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = held[k][i];
    } else {
      gpu::ldmatrix_x4(a, row + 16 * k);
    }
  }
};

// The softmax of a warp's 16 rows so far. A lane has rows lane / 4 and lane / 4 + 8 (half 0 and 1)
// and, of each 8 dimensions, two; m is in powers of 2 and the same in the four lanes of a row, l
// and `weighted` (sum of p times score) are each lane's own part. kMean: `weighted` is wanted.
template <int kDim, bool kMean>
struct TileSoftmax {
  float m[2] = {-INFINITY, -INFINITY}, l[2] = {}, weighted[2] = {};
  float o[kDim / 8][4] = {};

  // Adds the tile of keys from `first` on; scale includes log2 e.
  GPU_INLINE void Add(const Queries<kDim>& q, const gpu::bf16* stage, int first,
                      const int (&begin)[2], const int (&end)[2], float scale) {
    float s[4][4] = {};
    Scores(q, stage, s);
    const int lane = gpu::lane_index();
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first + 8 * n + lane % 4 * 2 + i % 2, half = i / 2;
        s[n][i] = key >= begin[half] && key < end[half] ? __fmul_rn(s[n][i], scale) : -INFINITY;
        largest[half] = fmaxf(largest[half], s[n][i]);
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) Raise(half, gpu::warp_max<4>(largest[half]));
    std::uint32_t p[2][4];
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float base = m[half] == -INFINITY ? 0.0F : m[half];
        const float x = s[n][2 * half], y = s[n][2 * half + 1];
        const float px = gpu::exp2_fast(x - base), py = gpu::exp2_fast(y - base);
        l[half] += px + py;
        if constexpr (kMean) {
          if (px > 0) weighted[half] = fmaf(px, x, weighted[half]);
          if (py > 0) weighted[half] = fmaf(py, y, weighted[half]);
        }
        p[n / 2][n % 2 * 2 + half] = gpu::pack_bf16(px, py);
      }
    }
    Values(p, stage + kTileKeys * TileSpace<kDim>::kPitch);
  }

  // As it was at the start, where `when`.
  GPU_INLINE void Clear(int half, bool when) {
    if (!when) return;
    m[half] = -INFINITY;
    l[half] = weighted[half] = 0;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) o[n][2 * half] = o[n][2 * half + 1] = 0;
  }

  // Writes the triples of the two rows (index -1: none).
  GPU_INLINE void Store(const Triples& to, const std::int64_t (&index)[2], int d) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = gpu::warp_sum<4>(l[half]);
      if (index[half] < 0) continue;
      ForEachValue(half, d, [&](int c, float value) { to.o[index[half] * d + c] = value; });
      if (gpu::lane_index() % 4 != 0) continue;
      to.m[index[half]] = __fmul_rn(m[half], kLn2);
      to.l[index[half]] = sum;
    }
  }

  // Merges the rows into their triples, where `when`.
  GPU_INLINE void MergeInto(const Triples& to, const std::int64_t (&index)[2],
                            const bool (&when)[2], int d) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = gpu::warp_sum<4>(l[half]);
      const bool merges = when[half] && sum > 0;
      const std::int64_t at = merges ? index[half] : 0;
      const Merging with(merges ? to.m[at] : 0.0F, __fmul_rn(m[half], kLn2));
      const float total = merges ? with.Sum(to.l[at], sum) : 0.0F;
      __syncwarp();  // all four lanes of a row have read m and l
      if (!merges) continue;
      ForEachValue(half, d, [&](int c, float value) {
        float& was = to.o[at * d + c];
        was = with.Sum(was, value);
      });
      if (gpu::lane_index() % 4 != 0) continue;
      to.m[at] = with.m;
      to.l[at] = total;
    }
  }

 private:
  GPU_INLINE void Scores(const Queries<kDim>& q, const gpu::bf16* k, float (&s)[4][4]) const {
    constexpr int kPitch = TileSpace<kDim>::kPitch;
    const int lane = gpu::lane_index();
    k += (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8;
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      std::uint32_t a[4], b[4];
      q.Get(step, a);
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        gpu::ldmatrix_x4(b, k + 16 * pair * kPitch + 16 * step);
        gpu::mma_bf16_16816(s[2 * pair], a, b[0], b[1]);
        gpu::mma_bf16_16816(s[2 * pair + 1], a, b[2], b[3]);
      }
    }
  }

  // The largest score so far becomes at least `score`.
  GPU_INLINE void Raise(int half, float score) {
    if (score <= m[half]) return;
    const float factor = gpu::exp2_fast(m[half] - score);  // 0 for an empty softmax
    m[half] = score;
    l[half] = __fmul_rn(l[half], factor);
    if constexpr (kMean) weighted[half] = __fmul_rn(weighted[half], factor);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      o[n][2 * half] *= factor;
      o[n][2 * half + 1] *= factor;
    }
  }

  GPU_INLINE void Values(const std::uint32_t (&p)[2][4], const gpu::bf16* v) {
    constexpr int kPitch = TileSpace<kDim>::kPitch;
    const int lane = gpu::lane_index();
    v += lane % 16 * kPitch + lane / 16 * 8;
#pragma unroll
    for (int keys = 0; keys < 2; ++keys) {
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        std::uint32_t b[4];
        gpu::ldmatrix_x4<true>(b, v + 16 * keys * kPitch + 16 * n);
        gpu::mma_bf16_16816(o[2 * n], p[keys], b[0], b[1]);
        gpu::mma_bf16_16816(o[2 * n + 1], p[keys], b[2], b[3]);
      }
    }
  }

  template <typename Visit>
  GPU_INLINE void ForEachValue(int half, int d, const Visit& visit) const {
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int c = 8 * n + gpu::lane_index() % 4 * 2 + i;
        if (c < d) visit(c, o[n][2 * half + i]);
      }
    }
  }
};

template <int kWarps>
GPU_INLINE void TileBarrier() {
  if constexpr (kWarps == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

// What a warp works on: its queries, of which the lane has two rows; keys, walk and stages are the
// block's.
template <int kDim>
struct TileWork {
  Keys keys;
  Walk walk;
  const Queries<kDim>& q;
  TileRow rows[2];
  float scale;
  gpu::bf16* stages;
};

// The whole block walks; after(i) is called by whole warps when the walk's tile i is added.
template <int kDim, int kWarps, bool kMean, typename After>
GPU_INLINE void Attend(const TileWork<kDim>& work, TileSoftmax<kDim, kMean>& softmax,
                       const After& after) {
  constexpr int kThreads = kWarps * gpu::kWarpLanes;
  constexpr int kStage = TileSpace<kDim>::kStage;
  const Walk& walk = work.walk;
  const TileRow(&rows)[2] = work.rows;
  // Rows fill a tile from its start: a warp without a first one only helps to load.
  const bool active = __any_sync(gpu::kFullWarp, rows[0].index >= 0) != 0;
  if (walk.count > 0) LoadKeys<kDim, kThreads>(work.keys, walk, 0, work.stages);
  for (int i = 0; i < walk.count; ++i) {
    if (i + 1 < walk.count) {
      LoadKeys<kDim, kThreads>(work.keys, walk, i + 1, work.stages + (i + 1) % 2 * kStage);
    } else {
      gpu::cp_async_commit();
    }
    gpu::cp_async_wait<1>();
    TileBarrier<kWarps>();
    const bool sinks = walk.InSinks(i);
    if (active) {
      // Element by element: a choice between arrays would put them into local memory.
      const int begin[2] = {sinks ? 0 : rows[0].begin, sinks ? 0 : rows[1].begin};
      const int end[2] = {sinks ? rows[0].sink_end : rows[0].end,
                          sinks ? rows[1].sink_end : rows[1].end};
      softmax.Add(work.q, work.stages + i % 2 * kStage, walk.First(i), begin, end,
                  work.scale * kLog2E);
    }
    after(i);
    TileBarrier<kWarps>();  // the next but one overwrites this stage
  }
}

}  // namespace metattn::cuda
