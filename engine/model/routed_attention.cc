#include "engine/model/routed_attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace metattn {
namespace {

std::int64_t QueryHeads(const ModelConfig& c, const RoutedAttentionShape& s) {
  return std::int64_t{s.heads} * c.group();
}

}  // namespace

std::int64_t RoutedAttention::ScratchBytes(const ModelConfig& config,
                                           const RoutedAttentionShape& shape) {
  const std::int64_t rows = shape.max_rows, heads = QueryHeads(config, shape);
  const std::int64_t per_row = heads * config.head_dim * 8 + heads * 8 + shape.heads * 5;
  return rows * per_row + std::int64_t{shape.max_context} * config.rotary_dim * 4 +
         std::int64_t{shape.layers} * shape.heads * 12;
}

std::int64_t RoutedAttention::BytesPerBlock(const ModelConfig& config,
                                            const RoutedAttentionShape& shape,
                                            const Kernels& kernels) {
  return std::int64_t{shape.layers} * shape.heads * kernels.PageBytes(config.head_dim);
}

absl::StatusOr<std::unique_ptr<RoutedAttention>> RoutedAttention::Create(
    const ModelConfig& config, const RoutedAttentionShape& shape, Kernels& kernels) {
  std::unique_ptr<RoutedAttention> attention(new RoutedAttention(config, shape, kernels));
  if (absl::Status s = attention->Allocate(); !s.ok()) return s;
  if (absl::Status s = attention->LoadRope(); !s.ok()) return s;
  return attention;
}

absl::Status RoutedAttention::Allocate() {
  const std::int64_t rows = shape_.max_rows, heads = QueryHeads(*config_, shape_);
  const std::int64_t counters = std::int64_t{shape_.layers} * shape_.heads;
  const struct {
    Buffer* buffer;
    std::int64_t bytes;
  } wanted[] = {
      {&pages_, shape_.blocks * BytesPerBlock(*config_, shape_, *kernels_)},
      {&cos_sin_, std::int64_t{shape_.max_context} * config_->rotary_dim * 4},
      {&q_, rows * heads * config_->head_dim * 4},
      {&o_, rows * heads * config_->head_dim * 4},
      {&m_, rows * heads * 4},
      {&l_, rows * heads * 4},
      {&decisions_, rows * shape_.heads},
      {&list_rows_, rows * shape_.heads * 4},
      {&list_counts_, counters * 4},
      {&far_tokens_, counters * 8},
  };
  for (const auto& w : wanted) {
    absl::StatusOr<Buffer> buffer = kernels_->device().Allocate(static_cast<std::size_t>(w.bytes));
    if (!buffer.ok()) return buffer.status();
    *w.buffer = *std::move(buffer);
  }
  zeros_.resize(far_tokens_.bytes());
  return absl::OkStatus();
}

absl::Status RoutedAttention::LoadRope() {
  const std::size_t half = config_->inv_freq.size();
  std::vector<float> table(static_cast<std::size_t>(shape_.max_context) * half * 2);
  for (int p = 0; p < shape_.max_context; ++p) {
    for (std::size_t i = 0; i < half; ++i) {
      const double angle = p * config_->inv_freq[i];
      float* pair = table.data() + (static_cast<std::size_t>(p) * half + i) * 2;
      pair[0] = static_cast<float>(std::cos(angle) * config_->rope_scale);
      pair[1] = static_cast<float>(std::sin(angle) * config_->rope_scale);
    }
  }
  absl::StatusOr<std::unique_ptr<Stream>> stream = kernels_->device().NewStream();
  if (!stream.ok()) return stream.status();
  kernels_->device().CopyIn(table.data(), View{&cos_sin_}, table.size() * 4, **stream);
  return (*stream)->Synchronize();
}

void RoutedAttention::BeginStep(Stream& stream) {
  kernels_->device().CopyIn(zeros_.data(), View{&far_tokens_}, far_tokens_.bytes(), stream);
  kernels_->device().CopyIn(zeros_.data(), View{&list_counts_}, list_counts_.bytes(), stream);
}

WorkList RoutedAttention::List(int layer) const {
  const std::size_t offset = static_cast<std::size_t>(layer) * shape_.heads * sizeof(std::int32_t);
  return {{&list_rows_}, {&list_counts_, offset}, shape_.max_rows};
}

void RoutedAttention::Layer(int layer, const LayerWeights& weights, const StepBatch& batch,
                            View qkv, View out, Stream& stream) {
  const AttentionRows& rows = batch.rows();
  const ModelConfig& c = *config_;
  auto optional = [](const Buffer& b) { return b.bytes() == 0 ? View{} : View{&b}; };
  const std::size_t layer_pages =
      static_cast<std::size_t>(layer) * shape_.heads * kernels_->PageBytes(c.head_dim);
  const PageTable pages = {
      {&pages_, layer_pages}, std::int64_t{shape_.layers} * shape_.heads, shape_.heads, c.head_dim};
  const Partial partial = {{&o_}, {&m_}, {&l_}};
  const WorkList list = List(layer);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));

  kernels_->RopeAppend({.rows = rows,
                        .pages = pages,
                        .group = c.group(),
                        .qkv = qkv,
                        .q_norm = optional(weights.q_norm),
                        .k_norm = optional(weights.k_norm),
                        .norm_eps = c.norm_eps,
                        .cos_sin = {&cos_sin_},
                        .rotary_dim = c.rotary_dim,
                        .interleaved = c.rope_interleaved,
                        .q = {&q_}},
                       stream);
  kernels_->Near({rows, pages, c.group(), scale, {&q_}, partial}, stream);
  kernels_->ForcedRoute({rows, shape_.heads, batch.route(), {&decisions_}}, stream);
  const std::size_t counter = static_cast<std::size_t>(layer) * shape_.heads * sizeof(std::int64_t);
  kernels_->Compact(
      {rows, shape_.heads, Mechanism::kFull, {&decisions_}, list, {&far_tokens_, counter}}, stream);
  kernels_->FarFull({rows, pages, c.group(), scale, {&q_}, list, partial}, stream);
  kernels_->Normalize(
      {partial, rows.tokens, static_cast<int>(QueryHeads(c, shape_)), c.head_dim, out}, stream);
}

absl::StatusOr<RoutedAttention::Totals> RoutedAttention::EndStep(Stream& stream) {
  const std::size_t n = static_cast<std::size_t>(shape_.layers) * shape_.heads;
  std::vector<std::int32_t> counts(n);
  std::vector<std::int64_t> far(n);
  kernels_->device().CopyOut(View{&list_counts_}, counts.data(), n * 4, stream);
  kernels_->device().CopyOut(View{&far_tokens_}, far.data(), n * 8, stream);
  if (absl::Status s = stream.Synchronize(); !s.ok()) return s;
  return Totals{std::accumulate(counts.begin(), counts.end(), std::int64_t{0}),
                std::accumulate(far.begin(), far.end(), std::int64_t{0})};
}

}  // namespace metattn
