// States of linear attention brought forward, block of 64 keys by block: S += phi(K)^T V, z += the
// sum of phi(K). The sums of one block are taken first and added to the state with one rounding, so
// a state does not depend on the steps that built it.
//
// Both products of a block are on tensor cores. One thread block of 4 warps a block of keys: each
// warp computes phi of 16 keys (feature_tile.h) into shared memory, rounded to bf16 (z is summed
// before that), then 16 features x d of the state at a time over the 64 keys, phi and V by
// ldmatrix. 64 keys, because a page is, and because one product over them is one rounding. Shared
// memory: 64 (2 kDim + 8) of phi and 64 (kDim + 8) of V, 2 bytes each, at most 98 KiB.
//
// Absorb updates the states in memory up to where the step's first row reads: a block in decode,
// all of a sequence after preemption, one after the other. From there on rows of a long step read
// states of their own: BlockSums sums every block by itself, as many thread blocks as there are
// blocks of keys and KV heads, and Scan, memory-bound, a thread an element, makes running sums of
// them in a table, one state a boundary. Store makes the last one the sequence's state when all
// rows have read.
//
// Bytes moved, a block of keys: K and V once, W from L2; f (d + 1) * 4 of state written, and read
// and written once more by Scan.
#include "kernels/cuda/feature_tile.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/linear_features.h"
#include "kernels/cuda/linear_state.h"
#include "kernels/cuda/shared_limit.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * gpu::kWarpLanes;
constexpr int kScanThreads = 128;
static_assert(kWarps * kTileRows == kPageTokens);

// Dynamic shared memory of a block of keys: phi [64, kPhiPitch], then V [64, kValuePitch]. The sums
// of z by warp use V's place before V comes.
template <int kDim>
struct BlockSpace {
  static constexpr int kPhiPitch = 2 * kDim + 8;
  static constexpr int kValuePitch = kDim + 8;
  static constexpr std::size_t kBytes = sizeof(gpu::bf16) * kPageTokens * (kPhiPitch + kValuePitch);
  static_assert(sizeof(float) * kWarps * 2 * kDim <= sizeof(gpu::bf16) * kPageTokens * kValuePitch);

  gpu::bf16 *phi, *v;
  float* z;  // [kWarps, f]

  GPU_INLINE explicit BlockSpace(unsigned char* shared)
      : phi(reinterpret_cast<gpu::bf16*>(shared)),
        v(phi + kPageTokens * kPhiPitch),
        z(reinterpret_cast<float*>(v)) {}
};

// A block of keys of one sequence and KV head.
struct KeyBlock {
  const gpu::bf16* page;
  int head, skipped;  // keys before linear_begin

  GPU_INLINE KeyBlock(const LinearAttention& a, int sequence, int of_head, std::int64_t begin)
      : page(KeyAt(a.rows, a.pages, sequence, of_head, begin)), head(of_head) {
    const std::int64_t before = a.rows.linear_begin - begin;
    skipped = static_cast<int>(before < 0 ? 0 : before < kPageTokens ? before : kPageTokens);
  }
};

// phi of the warp's 16 keys to shared memory, and its sum over them.
template <int kDim>
GPU_INLINE void PutFeatures(const LinearAttention& a, const KeyBlock& block,
                            const BlockSpace<kDim>& space) {
  const int d = a.pages.head_dim, lane = gpu::lane_index(), warp = gpu::warp_index();
  const int keys[2] = {warp * kTileRows + lane / 4, warp * kTileRows + lane / 4 + 8};
  FeatureTile<kDim> tile;
  if (a.hedgehog) {
    tile.template Project<1>(a.w_k + std::int64_t{block.head} * d * d, d,
                             [&](int column, std::uint32_t(&x)[1][2][4]) {
                               const uint4 low = LoadColumns(block.page + keys[0] * d, column, d);
                               const uint4 high = LoadColumns(block.page + keys[1] * d, column, d);
                               PutOperands(low, high, x[0]);
                             });
  } else {
    tile.Take(d, [&](int half, int column) {
      return __bfloat162float(block.page[keys[half] * d + column]);
    });
  }
  ForEachFeature(tile, a.hedgehog, d, [&](int feature, const float(&phi)[4]) {
    float kept[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) kept[i] = keys[i / 2] >= block.skipped ? phi[i] : 0.0F;
    const float low = ColumnSum(kept[0] + kept[2]), high = ColumnSum(kept[1] + kept[3]);
    if (feature < 0) return;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<std::uint32_t*>(space.phi + keys[half] * space.kPhiPitch + feature) =
          gpu::pack_bf16(kept[2 * half], kept[2 * half + 1]);
    }
    if (lane / 4 != 0) return;
    space.z[warp * a.features + feature] = low;
    space.z[warp * a.features + feature + 1] = high;
  });
  // The last tile of features is whole.
  const int f = a.features, rest = (f + kTileRows - 1) / kTileRows * kTileRows - f;
  for (int i = lane; i < rest * kTileRows; i += gpu::kWarpLanes) {
    const int key = warp * kTileRows + i % kTileRows;
    space.phi[key * space.kPhiPitch + f + i / kTileRows] = __float2bfloat16(0.0F);
  }
}

// V of the block to shared memory, zeros past d.
template <int kDim>
GPU_INLINE void LoadValues(const gpu::bf16* v, int d, const BlockSpace<kDim>& space) {
  const int thread = static_cast<int>(threadIdx.x);
  if (d % 8 == 0) {
    constexpr int kPieces = kDim / 8;
    for (int i = thread; i < kPageTokens * kPieces; i += kThreads) {
      const int key = i / kPieces, c = i % kPieces * 8;
      gpu::cp_async16(space.v + key * space.kValuePitch + c, v + key * d + c, c < d);
    }
  } else {  // rows are not aligned to 16 bytes
    for (int i = thread; i < kPageTokens * kDim; i += kThreads) {
      const int key = i / kDim, c = i % kDim;
      space.v[key * space.kValuePitch + c] = c < d ? v[key * d + c] : __float2bfloat16(0.0F);
    }
  }
  gpu::cp_async_commit();
  gpu::cp_async_wait<0>();
}

// Sums over the block's keys: of features feature .. feature + 15 times dimensions first .. first +
// 8 kParts - 1 of V.
template <int kDim, int kParts>
GPU_INLINE void SumKeys(const BlockSpace<kDim>& space, int feature, int first,
                        float (&sums)[kParts][4]) {
  const int lane = gpu::lane_index();
  const gpu::bf16* phi =
      space.phi + (lane / 16 * 8 + lane % 8) * space.kPhiPitch + feature + lane / 8 % 2 * 8;
  const gpu::bf16* v = space.v + lane % 16 * space.kValuePitch + first + lane / 16 * 8;
#pragma unroll
  for (int key = 0; key < kPageTokens; key += 16) {
    std::uint32_t a[4], b[4];
    gpu::ldmatrix_x4<true>(a, phi + key * space.kPhiPitch);
#pragma unroll
    for (int n = 0; n < kParts / 2; ++n) {
      gpu::ldmatrix_x4<true>(b, v + key * space.kValuePitch + 16 * n);
      gpu::mma_bf16_16816(sums[2 * n], a, b[0], b[1]);
      gpu::mma_bf16_16816(sums[2 * n + 1], a, b[2], b[3]);
    }
  }
}

// to = from + the keys of the block; `from` null: an empty state. May be in place.
template <int kDim>
GPU_INLINE void AddBlock(const LinearAttention& a, const KeyBlock& block,
                         const BlockSpace<kDim>& space, const float* from, float* to) {
  const int d = a.pages.head_dim, f = a.features, lane = gpu::lane_index();
  const auto add = [&](int i, float sum) { to[i] = (from == nullptr ? 0.0F : from[i]) + sum; };
  PutFeatures<kDim>(a, block, space);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < f; i += kThreads) {
    float sum = 0;
    for (int warp = 0; warp < kWarps; ++warp) sum += space.z[warp * f + i];
    add(f * d + i, sum);
  }
  __syncthreads();
  LoadValues<kDim>(block.page + kPageTokens * d, d, space);
  __syncthreads();
  constexpr int kColumns = kDim < 128 ? kDim : 128;  // at a time
  constexpr int kAcross = kDim / kColumns;
  for (int i = gpu::warp_index(); i / kAcross * kTileRows < f; i += kWarps) {
    const int tile = i / kAcross * kTileRows, first = i % kAcross * kColumns;
    float sums[kColumns / 8][4] = {};
    SumKeys(space, tile, first, sums);
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int feature = tile + lane / 4 + j / 2 * 8, c = first + 8 * n + lane % 4 * 2 + j % 2;
        if (feature < f && c < d) add(feature * d + c, sums[n][j]);
      }
    }
  }
  __syncthreads();  // the next block overwrites what is in shared memory
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) AbsorbKernel(LinearAttention a) {
  GPU_DYN_SMEM(shared);
  const int sequence = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const std::int32_t row = a.rows.row_begin[sequence];
  if (row == a.rows.row_begin[sequence + 1]) return;
  float* state = StateAt(a, sequence, head);
  const std::int64_t end = WholeBlocks(a.rows.linear_end[row]);
  for (std::int64_t at = a.rows.state_end[sequence]; at < end; at += kPageTokens) {
    AddBlock<kDim>(a, KeyBlock(a, sequence, head, at), BlockSpace<kDim>(shared),
                   at == 0 ? nullptr : state, state);
  }
}

// What a sequence's rows of the step read: states at the boundaries [first, last].
struct Span {
  std::int64_t first = 0, last = 0;

  GPU_INLINE Span(const Rows& rows, int sequence) {
    const std::int32_t row = rows.row_begin[sequence], end = rows.row_begin[sequence + 1];
    if (row == end) return;
    first = WholeBlocks(rows.linear_end[row]);
    last = WholeBlocks(rows.linear_end[end - 1]);
  }
};

// The sequence that a place of the table belongs to.
GPU_INLINE int SequenceOf(const Rows& rows, std::int64_t place) {
  int begin = 0, end = rows.sequences;
  while (end - begin > 1) {
    const int middle = (begin + end) / 2;
    (FirstBoundary(rows, middle) <= place ? begin : end) = middle;
  }
  return begin;
}

// Each place of the table but a sequence's first: the sums of the block before its boundary.
template <int kDim>
__global__ void __launch_bounds__(kThreads, 1) BlockSumsKernel(LinearAttention a) {
  GPU_DYN_SMEM(shared);
  const std::int64_t place = blockIdx.x;
  const int sequence = SequenceOf(a.rows, place), head = static_cast<int>(blockIdx.y);
  const Span span(a.rows, sequence);
  const std::int64_t at = span.first + (place - FirstBoundary(a.rows, sequence)) * kPageTokens;
  if (at >= span.last) return;
  AddBlock<kDim>(a, KeyBlock(a, sequence, head, at), BlockSpace<kDim>(shared), nullptr,
                 BoundaryState(a, sequence, head, at + kPageTokens, span.first));
}

// One thread an element of a state.
struct Element {
  int index, sequence, head;

  GPU_INLINE Element()
      : index(static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x)),
        sequence(static_cast<int>(blockIdx.z)),
        head(static_cast<int>(blockIdx.y)) {}
};

__global__ void ScanKernel(LinearAttention a) {
  const Element e;
  const Span span(a.rows, e.sequence);
  if (span.first == span.last || e.index >= StateFloats(a)) return;
  float sum = span.first == 0 ? 0.0F : StateAt(a, e.sequence, e.head)[e.index];
  float* to = BoundaryState(a, e.sequence, e.head, span.first, span.first) + e.index;
  const std::int64_t stride = a.pages.heads * StateFloats(a);
#pragma unroll 4
  for (std::int64_t at = span.first; at < span.last; at += kPageTokens) {
    to += stride;
    sum += *to;
    *to = sum;
  }
}

__global__ void StoreKernel(LinearAttention a) {
  const Element e;
  const Span span(a.rows, e.sequence);
  if (span.first == span.last || e.index >= StateFloats(a)) return;
  StateAt(a, e.sequence, e.head)[e.index] =
      BoundaryState(a, e.sequence, e.head, span.last, span.first)[e.index];
}

bool Empty(const LinearAttention& a) {
  return a.rows.tokens == 0 || a.rows.sequences == 0 || a.pages.heads == 0;
}

template <int kDim>
cudaError_t LaunchBlocks(void (*kernel)(LinearAttention), std::int64_t blocks,
                         const LinearAttention& p, cudaStream_t stream) {
  constexpr std::size_t kBytes = BlockSpace<kDim>::kBytes;
  if (const cudaError_t e = AllowShared(kernel, kBytes); e != cudaSuccess) return e;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(p.pages.heads));
  return gpu::launch(kernel, grid, dim3(kThreads), kBytes, stream, p);
}

cudaError_t LaunchElements(void (*kernel)(LinearAttention), const LinearAttention& p,
                           cudaStream_t stream) {
  const std::int64_t floats = std::int64_t{p.features} * (p.pages.head_dim + 1);
  const dim3 grid(static_cast<unsigned>((floats + kScanThreads - 1) / kScanThreads),
                  static_cast<unsigned>(p.pages.heads), static_cast<unsigned>(p.rows.sequences));
  return gpu::launch(kernel, grid, dim3(kScanThreads), 0, stream, p);
}

}  // namespace

cudaError_t LaunchAbsorb(const LinearAttention& p, cudaStream_t stream) {
  if (Empty(p)) return cudaSuccess;
  return ForTileDim(p.pages.head_dim, [&]<int kDim>() {
    return LaunchBlocks<kDim>(AbsorbKernel<kDim>, p.rows.sequences, p, stream);
  });
}

cudaError_t LaunchBoundaries(const LinearAttention& p, cudaStream_t stream) {
  if (Empty(p)) return cudaSuccess;
  const std::int64_t places = BoundaryPlaces(p.rows.tokens, p.rows.sequences);
  const cudaError_t e = ForTileDim(p.pages.head_dim, [&]<int kDim>() {
    return LaunchBlocks<kDim>(BlockSumsKernel<kDim>, places, p, stream);
  });
  return e == cudaSuccess ? LaunchElements(ScanKernel, p, stream) : e;
}

cudaError_t LaunchStore(const LinearAttention& p, cudaStream_t stream) {
  return Empty(p) ? cudaSuccess : LaunchElements(StoreKernel, p, stream);
}

}  // namespace metattn::cuda
