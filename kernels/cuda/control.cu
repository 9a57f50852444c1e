// The meta-controller: scalars, hidden layer, concentrations, uncertainty, scores and the decision
// of each row and KV head (formulas at ControlArgs in kernels/routing_ops.h).
//
// One warp a (row, KV head): lanes compute the scalars into shared memory, then hidden units lane
// by lane, whose products with the three output rows are summed over the warp; lane 0 decides. Rows
// that have nothing to decide leave after one comparison.
#include <cfloat>
#include <cmath>

#include "kernels/cuda/gpu.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launchers.h"
#include "kernels/cuda/pages.h"

namespace metattn::cuda {
namespace {

constexpr int kWarps = 4;
constexpr std::uint8_t kLocal = 2, kRouted = 3, kMixture = 3;
constexpr int kPaper = 2, kSoftplus = 0, kMix = 1;
constexpr float kScalarLimit = 8.0F;

struct Outcome {
  std::uint8_t decision = 0;  // full, what NaN gives
  float uncertainty = 1, margin = 0;
  float weights[3] = {1, 0, 0};
};

// NaN stays NaN, unlike with fminf and fmaxf.
GPU_INLINE float Clamp(float x, float limit) { return x < -limit ? -limit : x > limit ? limit : x; }

GPU_INLINE float GeluTanh(float x) {
  return 0.5F * x * (1.0F + tanhf(0.7978845608F * (x + 0.044715F * x * x * x)));
}

// n: tokens up to and with the row's.
GPU_INLINE float Context(const ControlParams& p, std::int64_t row) {
  return 1.0F + static_cast<float>(p.rows.position[row]);
}

// Scalar i > 0 of the retrofit features: four of each query head of the group.
GPU_INLINE float RetrofitScalar(const ControlParams& p, std::int64_t row, int head, int i) {
  const std::int64_t index = (row * p.heads + head) * p.group + (i - 1) / 4;
  const float lse = p.near.m[index] + logf(p.near.l[index]);
  const int kind = (i - 1) % 4;
  if (kind == 0) return lse;
  if (kind == 1) return p.near_stats[2 * index] - lse;
  if (kind == 2) return lse - p.near_stats[2 * index + 1];
  return p.lse_far[index] - lse;
}

GPU_INLINE float NormOf(const ControlParams& p, std::int64_t row) {
  float squares = 0;
  for (std::int64_t i = gpu::lane_index(); i < p.dim; i += gpu::kWarpLanes) {
    const float x = __bfloat162float(p.x[row * p.dim + i]);
    squares += x * x;
  }
  return sqrtf(gpu::warp_sum(squares) / static_cast<float>(p.dim));
}

// u [N] of one row and KV head, by the warp. Infinite differences count as the largest finite ones,
// so that a scale of 0 leaves a scalar out even where it is -inf (the sinks' share without sinks).
GPU_INLINE void Scalars(const ControlParams& p, std::int64_t row, int head, float* u) {
  const float norm = p.features == kPaper ? NormOf(p, row) : 0.0F;
  for (int i = gpu::lane_index(); i < p.scalar_count; i += gpu::kWarpLanes) {
    float s;
    if (p.features == kPaper) {
      const float part = (Context(p, row) - 1.0F) / static_cast<float>(p.last_position);
      s = i == 0 ? norm : part < 1.0F ? part : 1.0F;
    } else {
      s = i == 0 ? logf(Context(p, row)) : RetrofitScalar(p, row, head, i);
    }
    const int at = head * p.scalar_count + i;
    u[i] = Clamp(Clamp(s - p.scalar_mean[at], FLT_MAX) * p.scalar_scale[at], kScalarLimit);
  }
  __syncwarp();
}

// e: the three outputs, in every lane.
GPU_INLINE void Outputs(const ControlParams& p, std::int64_t row, int head, const float* u,
                        float (&e)[3]) {
  const float* projected = p.projected + row * (p.width + 3 * p.heads);
  const float* scalars = p.scalars + head * p.scalar_count * p.width;
  float sums[3] = {};
  for (int r = gpu::lane_index(); r < p.width; r += gpu::kWarpLanes) {
    float x = projected[r] + p.bias[head * p.width + r];
    for (int i = 0; i < p.scalar_count; ++i) x += scalars[i * p.width + r] * u[i];
    const float hidden = GeluTanh(x);
#pragma unroll
    for (int k = 0; k < 3; ++k) sums[k] += p.out[(head * 3 + k) * p.width + r] * hidden;
  }
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    float skip = 0;
    const float* weights = p.scalars_skip + (head * 3 + k) * p.scalar_count;
    for (int i = gpu::lane_index(); i < p.scalar_count; i += gpu::kWarpLanes) {
      skip += weights[i] * u[i];
    }
    e[k] = gpu::warp_sum(sums[k] + skip) + p.out_bias[head * 3 + k] +
           projected[p.width + head * 3 + k];
  }
}

GPU_INLINE float Largest(const float (&x)[3]) {
  float largest = x[0];
  for (int k = 1; k < 3; ++k) largest = x[k] > largest ? x[k] : largest;
  return largest;
}

// e becomes log alpha.
GPU_INLINE void LogShares(const ControlParams& p, float (&e)[3]) {
  for (float& value : e) {
    if (p.link == kSoftplus) {
      const float positive = value < 0 ? 0.0F : value;
      value = logf(positive + log1pf(expf(-fabsf(value))) + p.epsilon);
    } else {
      value /= p.temperature;
    }
  }
  const float largest = Largest(e);
  float sum = 0;
  for (const float value : e) sum += expf(value - largest);
  const float lse = largest + logf(sum);
  for (float& value : e) value -= lse;
}

// c_k.
GPU_INLINE void Costs(const ControlParams& p, std::int64_t row, float (&cost)[3]) {
  const float n = Context(p, row);
  const int far = p.rows.far_end[row] - p.rows.sinks;
  const float near = n - static_cast<float>(far > 0 ? far : 0);
  const float linear = (p.rows.linear_all ? 0.0F : near) + p.state_tokens;
  cost[0] = 1.0F;
  cost[1] = linear < n ? linear / n : 1.0F;
  cost[2] = near / n;
}

// softmax(score); the largest finite numbers stand for infinite scores.
GPU_INLINE void Weigh(const float (&score)[3], float (&weights)[3]) {
  const float largest = Clamp(Largest(score), FLT_MAX / 4);
  float sum = 0;
  for (int k = 0; k < 3; ++k) {
    weights[k] = expf(Clamp(score[k], FLT_MAX / 4) - largest);
    sum += weights[k];
  }
  for (float& weight : weights) weight /= sum;
}

GPU_INLINE Outcome Decide(const ControlParams& p, std::int64_t row, int head,
                          const float (&log_alpha)[3]) {
  float cost[3], score[3], entropy = 0;
  Costs(p, row, cost);
  bool defined = !std::isnan(p.eta[row]);
#pragma unroll
  for (int k = 0; k < 3; ++k) {
    const float alpha = expf(log_alpha[k]);
    if (alpha != 0) entropy -= alpha * log_alpha[k];
    score[k] = log_alpha[k] + p.offset[head * 3 + k] - p.cost_weight[row] * cost[k];
    defined = defined && !std::isnan(score[k]);
  }
  Outcome outcome;
  if (!defined) return outcome;
  // Constant indices only: a computed one would put the scores into local memory.
  int best = 0;
  float top = score[0];
#pragma unroll
  for (int k = 1; k < 3; ++k) {
    if (score[k] > top) {
      top = score[k];
      best = k;
    }
  }
  const float a = best == 0 ? score[1] : score[0], b = best == 2 ? score[1] : score[2];
  const float second = a > b ? a : b;
  outcome.margin = top == second ? 0.0F : top - second;
  const float u = entropy / 1.0986122887F;  // ln 3
  outcome.uncertainty = u < 0 ? 0.0F : u > 1 ? 1.0F : u;
  Weigh(score, outcome.weights);
  const bool certain = p.eta[row] >= 1 || outcome.uncertainty < p.eta[row];
  if (certain) outcome.decision = static_cast<std::uint8_t>(best);
  if (!certain && p.uncertain == kMix) outcome.decision = kMixture;
  return outcome;
}

__global__ void ControlKernel(ControlParams p) {
  GPU_DYN_SMEM(shared);
  const std::int64_t index = std::int64_t{blockIdx.x} * kWarps + gpu::warp_index();
  if (index >= p.rows.tokens * p.heads) return;
  const std::int64_t row = index / p.heads;
  const int head = static_cast<int>(index % p.heads);
  Outcome outcome;
  outcome.decision = kLocal;
  outcome.uncertainty = outcome.weights[0] = 0;
  if (Eligible(p.rows, row)) {
    if (p.route[row] < kRouted) {
      outcome.decision = p.route[row];
    } else {
      float* u = reinterpret_cast<float*>(shared) + gpu::warp_index() * p.scalar_count;
      float e[3];
      Scalars(p, row, head, u);
      Outputs(p, row, head, u, e);
      LogShares(p, e);
      outcome = Decide(p, row, head, e);
    }
  }
  if (gpu::lane_index() != 0) return;
  p.decisions[index] = outcome.decision;
  p.uncertainty[index] = outcome.uncertainty;
  p.margin[index] = outcome.margin;
  for (int k = 0; p.weights != nullptr && k < 3; ++k) p.weights[3 * index + k] = outcome.weights[k];
}

}  // namespace

cudaError_t LaunchControl(const ControlParams& p, cudaStream_t stream) {
  const std::int64_t n = p.rows.tokens * p.heads;
  if (n == 0) return cudaSuccess;
  const std::size_t shared = sizeof(float) * kWarps * static_cast<std::size_t>(p.scalar_count);
  return gpu::launch(ControlKernel, dim3(static_cast<unsigned>((n + kWarps - 1) / kWarps)),
                     dim3(kWarps * gpu::kWarpLanes), shared, stream, p);
}

}  // namespace metattn::cuda
