// Splits q, k, v; normalises and rotates q and k; stores k and v of every row in its page.
//
// One block a token, one warp a head at a time (q heads, then k, then v): a head's norm is a sum
// over a warp, and lanes write neighbouring values.
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/pages.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;

GPU_INLINE void Put(float* to, float value) { *to = value; }
GPU_INLINE void Put(gpu::bf16* to, float value) { *to = __float2bfloat16_rn(value); }

// One head of q or k: RMSNorm when there is a weight, then RoPE with the row's (cos, sin) pairs.
template <typename Out>
GPU_INLINE void NormRotate(const RopeAppendParams& p, const float* weight, const float* cos_sin,
                           const float* in, Out* out) {
  const int d = p.pages.head_dim, half = p.rotary_dim / 2, lane = gpu::lane_index();
  float factor = 1;
  if (weight != nullptr) {
    float squares = 0;
    for (int i = lane; i < d; i += gpu::kWarpLanes) squares += in[i] * in[i];
    factor = 1.0F / sqrtf(gpu::warp_sum(squares) / static_cast<float>(d) + p.norm_eps);
  }
  const auto value = [&](int i) { return in[i] * factor * (weight == nullptr ? 1.0F : weight[i]); };
  for (int i = lane; i < half; i += gpu::kWarpLanes) {
    const int a = p.interleaved ? 2 * i : i, b = p.interleaved ? 2 * i + 1 : i + half;
    const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
    Put(out + a, value(a) * c - value(b) * s);
    Put(out + b, value(a) * s + value(b) * c);
  }
  for (int i = p.rotary_dim + lane; i < d; i += gpu::kWarpLanes) Put(out + i, value(i));
}

__global__ void RopeAppendKernel(RopeAppendParams p) {
  const std::int64_t t = blockIdx.x;
  const int d = p.pages.head_dim, heads = p.pages.heads, q_heads = heads * p.group;
  const float* qkv = p.qkv + t * (q_heads + 2 * heads) * d;
  const float* cos_sin = p.cos_sin + std::int64_t{p.rows.position[t]} * p.rotary_dim;
  for (int head = gpu::warp_index(); head < q_heads + 2 * heads; head += kWarps) {
    const float* in = qkv + head * d;
    if (head < q_heads) {
      NormRotate(p, p.q_norm, cos_sin, in, p.q + (t * q_heads + head) * d);
      continue;
    }
    const bool is_key = head < q_heads + heads;
    const int kv = (head - q_heads) % heads;
    gpu::bf16* key = KeyAt(p.rows, p.pages, p.rows.sequence[t], kv, p.rows.position[t]);
    if (is_key) {
      NormRotate(p, p.k_norm, cos_sin, in, key);
    } else {
      gpu::bf16* value = key + kPageTokens * d;
      for (int i = gpu::lane_index(); i < d; i += gpu::kWarpLanes) Put(value + i, in[i]);
    }
  }
}

}  // namespace

cudaError_t LaunchRopeAppend(const RopeAppendParams& p, cudaStream_t stream) {
  if (p.rows.tokens == 0 || p.pages.heads == 0) return cudaSuccess;
  return gpu::launch(RopeAppendKernel, dim3(static_cast<unsigned>(p.rows.tokens)),
                     dim3(kWarps * gpu::kWarpLanes), 0, stream, p);
}

}  // namespace metattn::cuda
