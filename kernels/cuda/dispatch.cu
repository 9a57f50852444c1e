// Rows that another rank serves: from the work list into a request, out of it, their partials back
// (dispatch_ops.h).
//
// Picking: one warp walks the list 32 entries at a time and splits it stably in two; a row's place
// in the request is the count so far plus the leaving lanes below it. The rest of the list moves
// down in place, to where the same 32 entries or earlier ones have been read. Everything else: one
// warp a (row of the request, query head), lanes along the head. The grid covers the capacity;
// warps past the count, which only the device knows, end at once.
//
// Bytes moved: a request or an answer of n rows is n g d floats, read once and written once.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/softmax.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kSend = 0, kServe = 1, kMerge = 3;

__global__ void PickKernel(DispatchParams p) {
  std::int32_t* listed = p.list.rows + p.head * p.list.capacity;
  const int count = p.list.counts[p.head], lane = gpu::lane_index();
  int kept = 0, sent = 0;
  for (int begin = 0; begin < count; begin += gpu::kWarpLanes) {
    const bool there = begin + lane < count;
    const std::int32_t row = there ? listed[begin + lane] : 0;
    const bool wants = there && p.helped[row] != 0;
    const int place = sent + gpu::rank_in(__ballot_sync(gpu::kFullWarp, wants));
    const bool leaves = wants && place < p.capacity;
    const unsigned leaving = __ballot_sync(gpu::kFullWarp, leaves);
    const unsigned staying = __ballot_sync(gpu::kFullWarp, there && !leaves);
    __syncwarp();  // all lanes have read theirs: what stays may overwrite them
    if (leaves) p.rows[place] = row;
    if (there && !leaves) listed[kept + gpu::rank_in(staying)] = row;
    sent += __popc(leaving);
    kept += __popc(staying);
  }
  __syncwarp();  // all lanes have read the count
  if (lane != 0) return;
  p.list.counts[p.head] = kept;
  *p.count = sent;
}

// Where a warp's query head of the request lies; false past its end.
struct Place {
  std::int64_t sent, index;  // in the messages, in the arrays of the step

  GPU_INLINE static bool Find(const DispatchParams& p, Place* place) {
    place->sent = std::int64_t{blockIdx.x} * kWarps + gpu::warp_index();
    const std::int64_t entry = place->sent / p.group;
    if (entry >= *p.count) return false;
    const std::int64_t row = p.rows[entry];
    place->index = (row * p.heads + p.head) * p.group + place->sent % p.group;
    return true;
  }
};

__global__ void CarryKernel(DispatchParams p) {
  Place place;
  if (!Place::Find(p, &place)) return;
  const int d = p.head_dim;
  const std::int64_t mine = place.index * d, sent = place.sent * d;
  for (int i = gpu::lane_index(); i < d; i += gpu::kWarpLanes) {
    if (p.step == kSend) {
      p.sent_q[sent + i] = p.q[mine + i];
    } else if (p.step == kServe) {
      p.q[mine + i] = p.sent_q[sent + i];
      p.partial.o[mine + i] = 0.0F;
    } else {
      p.answer.o[sent + i] = p.partial.o[mine + i];
    }
  }
  if (gpu::lane_index() != 0 || p.step == kSend) return;
  if (p.step == kServe) {
    p.partial.m[place.index] = -INFINITY;
    p.partial.l[place.index] = 0.0F;
  } else {
    p.answer.m[place.sent] = p.partial.m[place.index];
    p.answer.l[place.sent] = p.partial.l[place.index];
  }
}

template <int kDims>
__global__ void AnswerKernel(DispatchParams p) {
  Place place;
  if (!Place::Find(p, &place)) return;
  Softmax<kDims> whole, far;
  whole.Load(p.partial, place.index, p.head_dim);
  far.Load(p.answer, place.sent, p.head_dim);
  whole.Merge(far);
  whole.Store(p.partial, place.index, p.head_dim);
}

}  // namespace

cudaError_t LaunchDispatch(const DispatchParams& p, cudaStream_t stream) {
  if (p.step == kSend) {
    const cudaError_t e = gpu::launch(PickKernel, dim3(1), dim3(gpu::kWarpLanes), 0, stream, p);
    if (e != cudaSuccess) return e;
  }
  const std::int64_t n = p.capacity * p.group;
  if (n == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>((n + kWarps - 1) / kWarps)),
      block(kWarps * gpu::kWarpLanes);
  if (p.step != kMerge) return gpu::launch(CarryKernel, grid, block, 0, stream, p);
  return ForHeadDim(p.head_dim, [&]<int kDims>() {
    return gpu::launch(AnswerKernel<kDims>, grid, block, 0, stream, p);
  });
}

}  // namespace metattn::cuda
