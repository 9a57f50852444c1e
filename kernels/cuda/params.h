// What the kernels of this folder are given: the Args of kernels.h with their Views resolved to
// device pointers. Plain data, passed to kernels by value; pointers are borrowed for the call.
// Notation and meaning of every field as in kernels.h, attention_types.h and routing_ops.h.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace metattn::cuda {

struct Rows {
  std::int64_t tokens;
  int sequences;
  const std::int32_t *position, *sequence, *row_begin, *near_begin, *far_end;
  const std::int32_t *table_begin, *blocks;
  int sinks;
  const std::int32_t* linear_end;
  int linear_begin;
  bool linear_all;
  const std::int32_t *state_slot, *state_end;
};

struct Pages {
  __nv_bfloat16* base;
  std::int64_t block_stride;
  int heads, head_dim;
};

struct List {
  std::int32_t *rows, *counts;
  std::int64_t capacity;
};

struct Triples {
  float *o, *m, *l;
};

// Consecutive rows of a weight of one type.
struct WeightPart {
  const unsigned char* data;
  std::int64_t rows, cols, row_bytes;
  int dtype;  // of DType
};

struct EmbedParams {
  WeightPart part;
  std::int64_t first_id;  // token id of the part's first row
  const std::int32_t* ids;
  float* out;
  std::int64_t tokens;
  bool clear;  // write zeros for ids of other parts and ranks (the first part does)
};

struct NormParams {
  float* residual;
  const float *delta, *weight;
  __nv_bfloat16* out;
  std::int64_t tokens, dim;
  float eps;
};

struct LinearParams {
  WeightPart part;
  std::int64_t first_row, rows;  // of the whole matrix: where the part's outputs go, their stride
  const __nv_bfloat16* x;
  const float* bias;
  float* out;
  __nv_bfloat16* rounded_out;  // instead of out, unless null
  std::int64_t tokens;
  bool exact;  // W is not rounded to bf16, whatever the number of rows
};

struct RopeAppendParams {
  Rows rows;
  Pages pages;
  int group;
  const float *qkv, *q_norm, *k_norm;
  float norm_eps;
  const float* cos_sin;
  int rotary_dim;
  bool interleaved;
  float* q;
};

struct RouteParams {
  Rows rows;
  int heads;
  const std::uint8_t* route;
  std::uint8_t* decisions;
};

struct CompactParams {
  std::int64_t tokens;
  int heads;
  std::uint8_t mechanism;
  bool mixtures;
  const std::uint8_t* decisions;
  List list;
};

struct NearParams {
  Rows rows;
  Pages pages;
  int group;
  float scale;
  const float* q;
  Triples out;
  float* stats;
};

struct FarParams {
  Rows rows;
  Pages pages;
  int group;
  float scale;
  const float* q;
  List list;
  Triples partial;
  Triples chunks;  // scratch [sequences, kFarChunks, H * g] triples, or null: no row is split
};

struct LinearAttention {
  Rows rows;
  Pages pages;
  float* states;
  std::int64_t slot_stride;
  int group, features;
  bool hedgehog;
  const __nv_bfloat16* w_k;
  // Room for states at the block boundaries that the step's rows need, [places, H] states.
  float* boundaries;
};

struct OddsParams {
  LinearAttention shape;
  const __nv_bfloat16* w_q;
  const float *log_gain, *kappa, *q;
  Triples near;
  float *phi_q, *lse_far;
};

struct FarLinearParams {
  LinearAttention shape;
  const float *phi_q, *lse_far;
  List list;
  Triples partial;
  bool alone;
  bool has_boundaries;  // as LaunchOdds left them
};

struct ControlParams {
  Rows rows;
  int heads, group, width, scalar_count;
  float state_tokens;
  int features, link, uncertain;  // of ControlFeatures, ControllerLink, UncertainPolicy
  float epsilon, temperature;
  const float* projected;
  Triples near;
  const float *near_stats, *lse_far;
  const __nv_bfloat16* x;
  std::int64_t dim;
  int last_position;
  const float *scalar_mean, *scalar_scale, *scalars, *bias, *out, *out_bias, *scalars_skip, *offset;
  const std::uint8_t* route;
  const float *cost_weight, *eta;
  std::uint8_t* decisions;
  float *uncertainty, *margin, *weights;
};

struct MixParams {
  std::int64_t tokens;
  int heads, group, head_dim, step;  // step: of Mechanism
  const std::uint8_t* decisions;
  const float* weights;
  Triples partial, kept;
  float* sum;
};

struct DispatchParams {
  std::int64_t capacity;
  int group, head_dim, heads, head, step;  // step: of DispatchStep
  const std::uint8_t* helped;
  List list;
  float* q;
  Triples partial;
  std::int32_t *count, *rows;  // of the request, and its queries
  float* sent_q;
  Triples answer;
};

struct NormalizeParams {
  Triples partial;
  std::int64_t rows;  // tokens * H * g
  int head_dim;
  __nv_bfloat16* out;
};

struct SwiGluParams {
  const __nv_bfloat16* gate_up;
  __nv_bfloat16* out;
  std::int64_t tokens, dim;
};

struct GatherParams {
  const __nv_bfloat16* x;
  const std::int32_t* rows;
  __nv_bfloat16* out;
  std::int64_t count, dim;
};

struct LargestValue {  // Largest of kernels.h
  float value;
  std::int32_t index;
};

struct ArgMaxParams {
  const float* x;
  LargestValue* out;
  std::int64_t rows, dim;
};

}  // namespace metattn::cuda
