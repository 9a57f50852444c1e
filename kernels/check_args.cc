#include "kernels/check_args.h"

#include <cstdint>
#include <limits>
#include <span>

#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "kernels/device.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn {
namespace {

constexpr int kMaxHeadDim = 256;

int Bytes(DType dtype) { return static_cast<int>(Info(dtype).block_bytes); }

void CheckOptional(View view, std::int64_t count, int value_bytes, const char* name) {
  if (view) CheckView(view, count, value_bytes, name);
}

void CheckRows(const AttentionRows& rows) {
  METATTN_CHECK(rows.sequences >= 0 && rows.sinks >= 0, "sequences or sinks below zero");
  CheckView(rows.position, rows.tokens, 4, "rows.position");
  CheckView(rows.sequence, rows.tokens, 4, "rows.sequence");
  CheckView(rows.near_begin, rows.tokens, 4, "rows.near_begin");
  CheckView(rows.far_end, rows.tokens, 4, "rows.far_end");
  if (rows.tokens == 0) return;
  CheckView(rows.row_begin, rows.sequences + 1, 4, "rows.row_begin");
  CheckView(rows.table_begin, rows.sequences + 1, 4, "rows.table_begin");
  METATTN_CHECK(rows.blocks, "rows.blocks is absent");
}

void CheckPages(const PageTable& pages, std::int64_t tokens) {
  METATTN_CHECK(pages.heads >= 0, "heads below zero");
  if (pages.heads == 0 || tokens == 0) return;
  METATTN_CHECK(pages.base, "pages.base is absent");
  METATTN_CHECK(pages.head_dim > 0 && pages.head_dim <= kMaxHeadDim && pages.head_dim % 2 == 0,
                absl::StrFormat("head size %d", pages.head_dim));
  METATTN_CHECK(pages.block_stride >= pages.heads, "block_stride below heads");
}

void CheckPartial(const Partial& partial, std::int64_t tokens, int heads, int head_dim) {
  CheckView(partial.o, tokens * heads * head_dim, 4, "partial.o");
  CheckView(partial.m, tokens * heads, 4, "partial.m");
  CheckView(partial.l, tokens * heads, 4, "partial.l");
}

void CheckList(const WorkList& list, std::int64_t tokens, int heads) {
  METATTN_CHECK(list.capacity >= tokens, "work list shorter than the step");
  CheckView(list.rows, list.capacity * heads, 4, "list.rows");
  CheckView(list.counts, heads, 4, "list.counts");
}

void CheckFeatureWeights(View weights, FeatureMap map, std::int64_t heads, int head_dim,
                         const char* name) {
  METATTN_CHECK(map == FeatureMap::kEluPlusOne || map == FeatureMap::kHedgehog,
                "no such feature map");
  if (map == FeatureMap::kHedgehog) CheckView(weights, heads * head_dim * head_dim, 2, name);
}

void CheckLinear(const LinearShape& shape) {
  const AttentionRows& rows = shape.rows;
  CheckRows(rows);
  CheckPages(shape.pages, rows.tokens);
  METATTN_CHECK(shape.group >= 0 && rows.linear_begin >= 0, "group or linear_begin below zero");
  if (rows.tokens == 0 || shape.pages.heads == 0) return;
  CheckView(rows.linear_end, rows.tokens, 4, "rows.linear_end");
  CheckView(rows.state_slot, rows.sequences, 4, "rows.state_slot");
  CheckView(rows.state_end, rows.sequences, 4, "rows.state_end");
  METATTN_CHECK(shape.states.base, "states.base is absent");
  METATTN_CHECK(shape.states.slot_stride >= shape.pages.heads, "slot_stride below heads");
  CheckFeatureWeights(shape.w_k, shape.map, shape.pages.heads, shape.pages.head_dim, "w_k");
}

void CheckControlWeights(const ControlArgs& args, std::int64_t heads, std::int64_t scalars) {
  CheckView(args.scalar_mean, heads * scalars, 4, "scalar_mean");
  CheckView(args.scalar_scale, heads * scalars, 4, "scalar_scale");
  CheckView(args.scalars, heads * args.width * scalars, 4, "scalars");
  CheckView(args.bias, heads * args.width, 4, "bias");
  CheckView(args.out, heads * 3 * args.width, 4, "out");
  CheckView(args.out_bias, heads * 3, 4, "out_bias");
  CheckView(args.scalars_skip, heads * 3 * scalars, 4, "scalars_skip");
  CheckView(args.offset, heads * 3, 4, "offset");
}

}  // namespace

void CheckView(View view, std::int64_t count, int value_bytes, const char* name) {
  METATTN_CHECK(count >= 0, absl::StrFormat("%s has %d values", name, count));
  if (count == 0) return;
  METATTN_CHECK(view, absl::StrFormat("%s is absent", name));
  const auto bytes = static_cast<std::size_t>(count) * static_cast<std::size_t>(value_bytes);
  METATTN_CHECK(view.offset_bytes <= view.buffer->bytes() &&
                    bytes <= view.buffer->bytes() - view.offset_bytes,
                absl::StrFormat("%s needs %d bytes at %d, its buffer has %d", name, bytes,
                                view.offset_bytes, view.buffer->bytes()));
}

void CheckArgs(const EmbedArgs& args) {
  METATTN_CHECK(args.table != nullptr, "embed without a table");
  CheckView(args.ids, args.tokens, 4, "ids");
  CheckView(args.out, args.tokens * args.table->cols(), 4, "out");
}

void CheckArgs(const NormArgs& args, DType activations) {
  CheckView(args.residual, args.tokens * args.dim, 4, "residual");
  CheckOptional(args.delta, args.tokens * args.dim, 4, "delta");
  CheckView(args.weight, args.tokens == 0 ? 0 : args.dim, 4, "weight");
  CheckView(args.out, args.tokens * args.dim, Bytes(activations), "out");
}

void CheckArgs(const LinearArgs& args, DType activations) {
  METATTN_CHECK(args.weight != nullptr, "linear without a weight");
  CheckView(args.x, args.tokens * args.weight->cols(), Bytes(activations), "x");
  CheckOptional(args.bias, args.weight->rows(), 4, "bias");
  CheckView(args.out, args.tokens * args.weight->rows(), args.rounded ? Bytes(activations) : 4,
            "out");
}

void CheckArgs(const RopeAppendArgs& args) {
  CheckRows(args.rows);
  CheckPages(args.pages, args.rows.tokens);
  METATTN_CHECK(args.group >= 0, "group below zero");
  const int d = args.pages.head_dim;
  const std::int64_t heads = args.pages.heads;
  if (heads == 0 || args.rows.tokens == 0) return;
  METATTN_CHECK(args.rotary_dim >= 0 && args.rotary_dim % 2 == 0 && args.rotary_dim <= d,
                absl::StrFormat("rotary_dim %d of head size %d", args.rotary_dim, d));
  CheckView(args.qkv, args.rows.tokens * heads * (args.group + 2) * d, 4, "qkv");
  CheckOptional(args.q_norm, d, 4, "q_norm");
  CheckOptional(args.k_norm, d, 4, "k_norm");
  CheckView(args.cos_sin, args.rotary_dim, 4, "cos_sin");
  CheckView(args.q, args.rows.tokens * heads * args.group * d, 4, "q");
}

void CheckArgs(const ForcedRouteArgs& args) {
  CheckRows(args.rows);
  CheckView(args.route, args.rows.tokens, 1, "route");
  CheckView(args.decisions, args.rows.tokens * args.heads, 1, "decisions");
}

void CheckArgs(const CompactArgs& args) {
  CheckRows(args.rows);
  METATTN_CHECK(static_cast<int>(args.mechanism) < kMechanisms, "a list of no mechanism");
  CheckView(args.decisions, args.rows.tokens * args.heads, 1, "decisions");
  CheckList(args.list, args.rows.tokens, args.heads);
}

void CheckArgs(const NearArgs& args) {
  CheckRows(args.rows);
  CheckPages(args.pages, args.rows.tokens);
  const int heads = args.pages.heads * args.group;
  CheckView(args.q, args.rows.tokens * heads * args.pages.head_dim, 4, "q");
  CheckPartial(args.out, args.rows.tokens, heads, args.pages.head_dim);
  CheckOptional(args.stats, args.rows.tokens * heads * 2, 4, "stats");
}

void CheckArgs(const FarFullArgs& args) {
  CheckRows(args.rows);
  CheckPages(args.pages, args.rows.tokens);
  CheckList(args.list, 0, args.pages.heads);  // that of a request may be shorter than the step
  const int heads = args.pages.heads * args.group;
  CheckView(args.q, args.rows.tokens * heads * args.pages.head_dim, 4, "q");
  CheckPartial(args.partial, args.rows.tokens, heads, args.pages.head_dim);
}

void CheckArgs(const LinearAbsorbArgs& args) { CheckLinear(args.shape); }

void CheckArgs(const LinearOddsArgs& args) {
  CheckLinear(args.shape);
  const std::int64_t tokens = args.shape.rows.tokens;
  const int heads = args.shape.pages.heads * args.shape.group, d = args.shape.pages.head_dim;
  if (tokens == 0 || heads == 0) return;
  CheckFeatureWeights(args.w_q, args.shape.map, heads, d, "w_q");
  CheckView(args.log_gain, heads, 4, "log_gain");
  CheckView(args.kappa, heads, 4, "kappa");
  CheckView(args.q, tokens * heads * d, 4, "q");
  CheckPartial(args.near, tokens, heads, d);
  CheckView(args.phi_q, tokens * heads * Features(args.shape.map, d), 4, "phi_q");
  CheckView(args.lse_far, tokens * heads, 4, "lse_far");
}

void CheckArgs(const FarLinearArgs& args) {
  CheckLinear(args.shape);
  const std::int64_t tokens = args.shape.rows.tokens;
  const int heads = args.shape.pages.heads * args.shape.group, d = args.shape.pages.head_dim;
  CheckList(args.list, tokens, args.shape.pages.heads);
  if (tokens == 0 || heads == 0) return;
  CheckView(args.phi_q, tokens * heads * Features(args.shape.map, d), 4, "phi_q");
  CheckView(args.lse_far, tokens * heads, 4, "lse_far");
  CheckPartial(args.partial, tokens, heads, d);
}

void CheckArgs(const ControlArgs& args, DType activations) {
  CheckRows(args.rows);
  METATTN_CHECK(args.heads >= 0 && args.group >= 0 && args.width >= 0,
                absl::StrFormat("controller of %d heads of %d, width %d", args.heads, args.group,
                                args.width));
  const std::int64_t tokens = args.rows.tokens, heads = args.heads;
  const std::int64_t scalars = ControlScalars(args.features, args.group);
  if (tokens == 0 || heads == 0) return;
  METATTN_CHECK(args.uncertain == UncertainPolicy::kFull || args.weights, "mixtures need weights");
  CheckView(args.projected, tokens * (args.width + 3 * heads), 4, "projected");
  if (args.features == ControlFeatures::kRetrofit) {
    CheckView(args.near.m, tokens * heads * args.group, 4, "near.m");
    CheckView(args.near.l, tokens * heads * args.group, 4, "near.l");
    CheckView(args.near_stats, tokens * heads * args.group * 2, 4, "near_stats");
    CheckView(args.lse_far, tokens * heads * args.group, 4, "lse_far");
  }
  if (args.features == ControlFeatures::kPaper) {
    METATTN_CHECK(args.dim > 0 && args.last_position > 0, "no scale for the paper's features");
    CheckView(args.x, tokens * args.dim, Bytes(activations), "x");
  }
  CheckControlWeights(args, heads, scalars);
  CheckView(args.route, tokens, 1, "route");
  CheckView(args.cost_weight, tokens, 4, "cost_weight");
  CheckView(args.eta, tokens, 4, "eta");
  CheckView(args.decisions, tokens * heads, 1, "decisions");
  CheckView(args.uncertainty, tokens * heads, 4, "uncertainty");
  CheckView(args.margin, tokens * heads, 4, "margin");
  CheckOptional(args.weights, tokens * heads * kMechanisms, 4, "weights");
}

void CheckArgs(const MixArgs& args) {
  METATTN_CHECK(args.tokens >= 0 && args.heads >= 0 && args.group >= 0 && args.head_dim >= 0,
                "a size below zero");
  METATTN_CHECK(static_cast<int>(args.step) < kMechanisms, "a step of no mechanism");
  const int q_heads = args.heads * args.group;
  CheckView(args.decisions, args.tokens * args.heads, 1, "decisions");
  CheckView(args.weights, args.tokens * args.heads * kMechanisms, 4, "weights");
  CheckPartial(args.partial, args.tokens, q_heads, args.head_dim);
  CheckPartial(args.kept, args.tokens, q_heads, args.head_dim);
  CheckView(args.sum, args.tokens * q_heads * args.head_dim, 4, "sum");
}

void CheckArgs(const DispatchArgs& args) {
  const BucketShape& bucket = args.bucket;
  METATTN_CHECK(bucket.capacity >= 0 && bucket.group > 0 && bucket.head_dim > 0,
                absl::StrFormat("a bucket of %d rows of %d heads of %d", bucket.capacity,
                                bucket.group, bucket.head_dim));
  METATTN_CHECK(args.head >= 0 && args.head < args.heads,
                absl::StrFormat("KV head %d of %d", args.head, args.heads));
  const bool sends = args.step == DispatchStep::kSend, serves = args.step == DispatchStep::kServe;
  const int q_heads = args.heads * bucket.group;
  CheckView(args.request, bucket.request_bytes(), 1, "request");
  if (!sends && !serves) CheckView(args.answer, bucket.answer_bytes(), 1, "answer");
  if (!sends) CheckPartial(args.partial, args.tokens, q_heads, bucket.head_dim);
  if (sends || serves) CheckView(args.q, args.tokens * q_heads * bucket.head_dim, 4, "q");
  if (!sends) return;
  CheckView(args.helped, args.tokens, 1, "helped");
  CheckList(args.list, args.tokens, args.heads);
}

void CheckArgs(const NormalizeArgs& args, DType activations) {
  CheckPartial(args.partial, args.tokens, args.heads, args.head_dim);
  CheckView(args.out, args.tokens * args.heads * args.head_dim, Bytes(activations), "out");
}

void CheckArgs(const SwiGluArgs& args, DType activations) {
  CheckView(args.gate_up, args.tokens * 2 * args.dim, Bytes(activations), "gate_up");
  CheckView(args.out, args.tokens * args.dim, Bytes(activations), "out");
}

void CheckArgs(const GatherArgs& args, DType activations) {
  METATTN_CHECK(args.dim >= 0, "dim below zero");
  CheckView(args.rows, args.count, 4, "rows");
  CheckView(args.out, args.count * args.dim, Bytes(activations), "out");
  METATTN_CHECK(args.count * args.dim == 0 || args.x, "x is absent");
}

void CheckArgs(const ArgMaxArgs& args) {
  METATTN_CHECK(args.dim >= 0 && args.dim <= std::numeric_limits<std::int32_t>::max(),
                "dim is no index");
  CheckView(args.x, args.rows * args.dim, 4, "x");
  CheckView(args.out, args.rows, sizeof(Largest), "out");
}

void CheckParts(std::span<const MatrixPart> parts, std::int64_t cols) {
  METATTN_CHECK(cols >= 0, absl::StrFormat("matrix of %d columns", cols));
  for (const MatrixPart& part : parts) {
    const DTypeInfo info = Info(part.dtype);
    METATTN_CHECK(part.dtype != DType::kI32, "a weight of integers");
    METATTN_CHECK(cols % info.block_values == 0,
                  absl::StrFormat("%d columns are no multiple of a block of %s", cols,
                                  std::string(info.name)));
    METATTN_CHECK(part.rows >= 0 && (part.rows == 0 || part.data != nullptr), "part without data");
    METATTN_CHECK(part.rows <= 1 || part.row_stride_bytes >= BytesFor(part.dtype, cols),
                  "row stride shorter than a row");
  }
}

}  // namespace metattn
