// Table look-up: rows of the embedding by token id, rows of activations by index.
//
// One block a row, threads along it: neighbouring threads read and write neighbouring values. 128
// threads cover a row of 576 in five rounds and leave room for many rows on a multiprocessor.
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"

namespace metattn::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void EmbedKernel(EmbedParams p) {
  const std::int64_t t = blockIdx.x;
  const std::int64_t row = p.ids[t] - p.first_id;
  const bool here = row >= 0 && row < p.part.rows;
  if (!here && !p.clear) return;
  const unsigned char* data = p.part.data + (here ? row : 0) * p.part.row_bytes;
  for (std::int64_t i = threadIdx.x; i < p.part.cols; i += kThreads) {
    p.out[t * p.part.cols + i] = here ? Decode(p.part.dtype, data, i) : 0.0F;
  }
}

__global__ void GatherKernel(GatherParams p) {
  const gpu::bf16* from = p.x + p.rows[blockIdx.x] * p.dim;
  gpu::bf16* to = p.out + blockIdx.x * p.dim;
  for (std::int64_t i = threadIdx.x; i < p.dim; i += kThreads) to[i] = from[i];
}

}  // namespace

cudaError_t LaunchEmbed(const EmbedParams& p, cudaStream_t stream) {
  if (p.tokens == 0) return cudaSuccess;
  return gpu::launch(EmbedKernel, dim3(static_cast<unsigned>(p.tokens)), dim3(kThreads), 0, stream,
                     p);
}

cudaError_t LaunchGather(const GatherParams& p, cudaStream_t stream) {
  if (p.count == 0 || p.dim == 0) return cudaSuccess;
  return gpu::launch(GatherKernel, dim3(static_cast<unsigned>(p.count)), dim3(kThreads), 0, stream,
                     p);
}

}  // namespace metattn::cuda
