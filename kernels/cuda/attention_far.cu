// Far span of the listed rows: [sinks, far_end), merged into the row's near partial.
//
// Keys go in chunks of whole spans (256 keys on the grid of positions), at most kChunks a row, so
// their length follows from the row's far_end alone. Each chunk is a softmax of its own, and chunks
// are merged into the near partial in order of position. Who works on a chunk does not matter for
// the bits:
//   decode   rows alone of their sequence in the step: one block a (sequence, KV head, chunk), one
//            warp of 16 query rows = the group's heads (attention_tile.h), chunk triples to
//            scratch; then a second kernel merges them, a warp a query head. The second kernel
//            instead of a last block that notices: no memory order between blocks to get wrong,
//            nothing to reset. 32 chunks, so that one sequence gives a block to every
//            multiprocessor: with 8 KV heads 256 blocks, each with two tiles on the way.
//   prefill  other rows: one block a tile of 64 query rows, gathered from the list within one
//            sequence, which walks all chunks and merges in place.
// The grid covers what the host knows; blocks without work end at once, so the host never needs the
// lists' counts.
//
// Bytes moved, decode: K and V of [0, far_end) of each (listed row, KV head) once, pages whole
// where far_end is on their grid, whatever the group; chunk triples (d + 2) * 4 bytes a query head
// and chunk, written and read once, at most 2 g / 256 of K and V's.
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/shared_limit.h"

namespace metattn::cuda {
namespace {

constexpr int kSpan = 256;  // kSpanTokens of kernels/types.h (checked in cuda_kernels.cc)
constexpr int kChunks = kFarChunks;
constexpr int kMergeWarps = 4;

// The chunks [begin, end) of a row, of `keys` keys each on the grid of positions.
struct Chunks {
  int keys, begin, end;

  GPU_INLINE Chunks(int sinks, int far_end) {
    const int spans = (far_end + kSpan - 1) / kSpan;
    keys = (spans + kChunks - 1) / kChunks * kSpan;
    begin = far_end > sinks ? sinks / keys : 0;
    end = far_end > sinks ? (far_end + keys - 1) / keys : 0;
  }
};

// Whether the row is in the KV head's list, which is in ascending order; whole warps call.
GPU_INLINE bool Listed(const List& list, int head, int row) {
  const std::int32_t* rows = list.rows + head * list.capacity;
  const int lane = gpu::lane_index();
  int begin = 0, count = list.counts[head];
  while (count > gpu::kWarpLanes) {  // the last of up to 32 pieces that begins at or before the row
    const int step = (count + gpu::kWarpLanes - 1) / gpu::kWarpLanes;
    const bool before = lane * step < count && rows[begin + lane * step] <= row;
    const int pieces = __popc(__ballot_sync(gpu::kFullWarp, before));
    if (pieces == 0) return false;
    begin += (pieces - 1) * step;
    count = count - (pieces - 1) * step < step ? count - (pieces - 1) * step : step;
  }
  return __any_sync(gpu::kFullWarp, lane < count && rows[begin + lane] == row) != 0;
}

// The row of a sequence that has just one in this step and is listed; -1 otherwise.
GPU_INLINE int LoneRow(const FarParams& p, int sequence, int head) {
  const int row = p.rows.row_begin[sequence];
  if (p.rows.row_begin[sequence + 1] - row != 1) return -1;
  return Listed(p.list, head, row) ? row : -1;
}

// Where the triple of (sequence, query head) for a chunk lies in scratch, chunks counted from the
// row's first.
GPU_INLINE std::int64_t ChunkIndex(const FarParams& p, int sequence, int q_head, int chunk) {
  return (std::int64_t{sequence} * kChunks + chunk) * p.pages.heads * p.group + q_head;
}

template <int kDim, int kWarps>
__global__ void __launch_bounds__(kWarps* gpu::kWarpLanes, 1) FarChunkKernel(FarParams p) {
  GPU_DYN_SMEM(shared);
  constexpr int kCapacity = kWarps * kWarpRows;
  const int parts = (p.group + kCapacity - 1) / kCapacity, lane = gpu::lane_index();
  const int head = static_cast<int>(blockIdx.y) / parts, sequence = static_cast<int>(blockIdx.z);
  const int t = LoneRow(p, sequence, head);
  if (t < 0) return;
  const int sinks = p.rows.sinks, far_end = p.rows.far_end[t];
  const Chunks chunks(sinks, far_end);
  const int chunk = chunks.begin + static_cast<int>(blockIdx.x);
  if (chunk >= chunks.end) return;
  const int first = chunk * chunks.keys, last = first + chunks.keys;
  const int begin = first > sinks ? first : sinks, end = last < far_end ? last : far_end;

  const Packing packing(kCapacity, p.group, static_cast<int>(blockIdx.y) % parts);
  const auto member_of = [&](int r) {
    const int member = gpu::warp_index() * kWarpRows + r;
    return member < packing.members ? head * p.group + packing.first_member + member : -1;
  };
  const auto index_of = [&](int r) -> std::int64_t {
    const int q_head = member_of(r);
    return q_head < 0 ? -1 : std::int64_t{t} * p.pages.heads * p.group + q_head;
  };
  auto* space = reinterpret_cast<gpu::bf16*>(shared);
  constexpr int kQueries = kWarpRows * TileSpace<kDim>::kPitch;
  const Queries<kDim> q(p.q, p.pages.head_dim, index_of, space + gpu::warp_index() * kQueries);
  TileRow rows[2];
  std::int64_t out[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int r = lane / 4 + 8 * half, q_head = member_of(r);
    rows[half] = {index_of(r), 0, begin, end};
    out[half] = q_head < 0 ? -1 : ChunkIndex(p, sequence, q_head, static_cast<int>(blockIdx.x));
  }
  TileSoftmax<kDim, false> softmax;
  const TileWork<kDim> work{
      {p.rows, p.pages, sequence, head}, Walk(0, begin, end, 0), q, {rows[0], rows[1]}, p.scale,
      space + kWarps * kQueries};
  Attend<kDim, kWarps>(work, softmax, [](int) {});
  softmax.Store(p.chunks, out, p.pages.head_dim);
}

template <int kDims>
__global__ void FarMergeKernel(FarParams p) {
  const int q_head = static_cast<int>(blockIdx.x) * kMergeWarps + gpu::warp_index();
  if (q_head >= p.pages.heads * p.group) return;
  const int sequence = static_cast<int>(blockIdx.y), d = p.pages.head_dim;
  const int t = LoneRow(p, sequence, q_head / p.group);
  if (t < 0) return;
  const Chunks chunks(p.rows.sinks, p.rows.far_end[t]);
  const int count = chunks.end - chunks.begin, lane = gpu::lane_index();
  if (count == 0) return;
  static_assert(kChunks <= gpu::kWarpLanes);  // a lane holds m and l of one chunk
  const std::int64_t mine = ChunkIndex(p, sequence, q_head, lane < count ? lane : 0);
  const float chunk_m = p.chunks.m[mine], chunk_l = p.chunks.l[mine];
  const std::int64_t index = std::int64_t{t} * p.pages.heads * p.group + q_head;
  Softmax<kDims> whole;
  whole.Load(p.partial, index, d);
#pragma unroll 4
  for (int chunk = 0; chunk < count; ++chunk) {
    const float* o = p.chunks.o + ChunkIndex(p, sequence, q_head, chunk) * d;
    const Merging with(whole.m, __shfl_sync(gpu::kFullWarp, chunk_m, chunk));
    whole.m = with.m;
    whole.l = with.Sum(whole.l, __shfl_sync(gpu::kFullWarp, chunk_l, chunk));
#pragma unroll
    for (int j = 0; j < kDims; ++j) {
      const int i = j * gpu::kWarpLanes + lane;
      whole.o[j] = with.Sum(whole.o[j], i < d ? o[i] : 0.0F);
    }
  }
  whole.Store(p.partial, index, d);
}

template <int kDim, int kWarps>
__global__ void __launch_bounds__(kWarps* gpu::kWarpLanes, 1) FarTileKernel(FarParams p) {
  GPU_DYN_SMEM(shared);
  const int head = static_cast<int>(blockIdx.y), listed = p.list.counts[head];
  const int first = static_cast<int>(blockIdx.x), lane = gpu::lane_index();
  if (first >= listed) return;
  const std::int32_t* list = p.list.rows + head * p.list.capacity;
  const int sequence = p.rows.sequence[list[first]];
  const bool lone = p.rows.row_begin[sequence + 1] - p.rows.row_begin[sequence] == 1;
  if (lone && p.chunks.o != nullptr) return;  // the other kernels' work
  const Packing packing(kWarps * kWarpRows, p.group, static_cast<int>(blockIdx.z));
  const int place = first % packing.rows;
  if (place > 0 && p.rows.sequence[list[first - 1]] == sequence) return;

  // Listed rows of one sequence are neighbours: those of it among the next ones.
  int count = 0, past = 0;
  for (int i = 0; i < packing.rows - place; i += gpu::kWarpLanes) {
    const int at = first + i + lane;
    const bool ours =
        i + lane < packing.rows - place && at < listed && p.rows.sequence[list[at]] == sequence;
    count += __popc(__ballot_sync(gpu::kFullWarp, ours));
    const int end = ours ? p.rows.far_end[list[at]] : 0;
    past = end > past ? end : past;
  }
  past = __reduce_max_sync(gpu::kFullWarp, past);

  const int sinks = p.rows.sinks;
  const auto row_of = [&](int r) {
    const int packed = gpu::warp_index() * kWarpRows + r, i = packed / packing.members;
    if (i >= count) return TileRow{-1, 0, 0, 0};
    const int t = list[first + i];
    const std::int64_t group = (std::int64_t{t} * p.pages.heads + head) * p.group;
    return TileRow{group + packing.first_member + packed % packing.members, 0, sinks,
                   p.rows.far_end[t]};
  };
  auto* space = reinterpret_cast<gpu::bf16*>(shared);
  constexpr int kQueries = kWarpRows * TileSpace<kDim>::kPitch;
  const Queries<kDim> q(
      p.q, p.pages.head_dim, [&](int r) { return row_of(r).index; },
      space + gpu::warp_index() * kQueries);
  const TileRow rows[2] = {row_of(lane / 4), row_of(lane / 4 + 8)};
  const std::int64_t index[2] = {rows[0].index, rows[1].index};
  const int chunk_keys[2] = {Chunks(sinks, rows[0].end).keys, Chunks(sinks, rows[1].end).keys};
  const Walk walk(0, sinks, past, 0);
  TileSoftmax<kDim, false> softmax;
  const TileWork<kDim> work{{p.rows, p.pages, sequence, head}, walk, q, {rows[0], rows[1]}, p.scale,
                            space + kWarps * kQueries};
  Attend<kDim, kWarps>(work, softmax, [&](int i) {
    const int begin = walk.First(i), end = begin + kTileKeys;
    if (end % kSpan != 0 && end < past) return;
    const int span = begin / kSpan * kSpan;
    const auto ends = [&](const TileRow& row, int keys) {
      return row.index >= 0 && span < row.end && (end >= row.end || end % keys == 0);
    };
    const bool when[2] = {ends(rows[0], chunk_keys[0]), ends(rows[1], chunk_keys[1])};
    softmax.MergeInto(p.partial, index, when, p.pages.head_dim);
    softmax.Clear(0, when[0]);
    softmax.Clear(1, when[1]);
  });
}

template <int kDim, int kWarps>
cudaError_t LaunchChunks(const FarParams& p, cudaStream_t stream) {
  constexpr int kCapacity = kWarps * kWarpRows;
  const int parts = (p.group + kCapacity - 1) / kCapacity;
  const dim3 grid(kChunks, static_cast<unsigned>(p.pages.heads * parts),
                  static_cast<unsigned>(p.rows.sequences));
  const auto kernel = FarChunkKernel<kDim, kWarps>;
  constexpr std::size_t kBytes = TileSpace<kDim>::Bytes(kWarps);
  if (const cudaError_t e = AllowShared(kernel, kBytes); e != cudaSuccess) return e;
  return gpu::launch(kernel, grid, dim3(kWarps * gpu::kWarpLanes), kBytes, stream, p);
}

template <int kDim>
cudaError_t LaunchDecode(const FarParams& p, cudaStream_t stream) {
  const cudaError_t e =
      p.group <= kWarpRows ? LaunchChunks<kDim, 1>(p, stream) : LaunchChunks<kDim, 4>(p, stream);
  if (e != cudaSuccess) return e;
  const int q_heads = p.pages.heads * p.group;
  const dim3 grid(static_cast<unsigned>((q_heads + kMergeWarps - 1) / kMergeWarps),
                  static_cast<unsigned>(p.rows.sequences));
  return gpu::launch(FarMergeKernel<kDim / gpu::kWarpLanes>, grid,
                     dim3(kMergeWarps * gpu::kWarpLanes), 0, stream, p);
}

template <int kDim>
cudaError_t LaunchTiles(const FarParams& p, cudaStream_t stream) {
  constexpr int kWarps = 4, kCapacity = kWarps * kWarpRows;
  const dim3 grid(static_cast<unsigned>(p.rows.tokens), static_cast<unsigned>(p.pages.heads),
                  static_cast<unsigned>((p.group + kCapacity - 1) / kCapacity));
  const auto kernel = FarTileKernel<kDim, kWarps>;
  constexpr std::size_t kBytes = TileSpace<kDim>::Bytes(kWarps);
  if (const cudaError_t e = AllowShared(kernel, kBytes); e != cudaSuccess) return e;
  return gpu::launch(kernel, grid, dim3(kWarps * gpu::kWarpLanes), kBytes, stream, p);
}

}  // namespace

cudaError_t LaunchFarFull(const FarParams& p, cudaStream_t stream) {
  if (p.rows.tokens == 0 || p.pages.heads == 0 || p.group == 0) return cudaSuccess;
  return ForTileDim(p.pages.head_dim, [&]<int kDim>() {
    if (p.chunks.o != nullptr) {
      if (const cudaError_t e = LaunchDecode<kDim>(p, stream); e != cudaSuccess) return e;
      if (p.rows.tokens == 1) return cudaSuccess;
    }
    return LaunchTiles<kDim>(p, stream);
  });
}

}  // namespace metattn::cuda
