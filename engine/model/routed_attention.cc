#include "engine/model/routed_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "engine/formats/status_macros.h"

namespace metattn {
namespace {

std::int64_t QueryHeads(const ModelConfig& c, const RoutedAttentionShape& s) {
  return std::int64_t{s.heads} * c.group();
}

// [layers, from, width] -> [layers, to, width]: rows past the shorter one are dropped or `fill`ed.
template <typename T>
void Resize(std::vector<T>& values, std::array<std::int64_t, 2> rows, std::int64_t width, T fill) {
  const auto [from, to] = rows;
  if (from == to || values.empty()) return;
  std::vector<T> resized;
  const std::int64_t kept = std::min(from, to) * width,
                     added = std::max<std::int64_t>(0, to - from);
  for (auto layer = values.begin(); layer != values.end(); layer += from * width) {
    resized.insert(resized.end(), layer, layer + kept);
    resized.insert(resized.end(), static_cast<std::size_t>(added * width), fill);
  }
  values = std::move(resized);
}

ShadowShape ShadowShapeOf(const ModelConfig& c, const RoutedAttentionShape& s) {
  return {s.layers, s.heads, c.group(), c.head_dim, s.max_rows, s.max_shadow_rows};
}

}  // namespace

std::int64_t RoutedAttention::ScratchBytes(const ModelConfig& config,
                                           const RoutedAttentionShape& shape) {
  const std::int64_t rows = shape.max_rows, heads = QueryHeads(config, shape);
  // q and the partial; perhaps statistics; perhaps the kept partial and the sum.
  const std::int64_t per_head = config.head_dim * 8 + 8 + (shape.near_stats ? 8 : 0) +
                                (shape.mixtures ? config.head_dim * 8 + 8 : 0);
  const std::int64_t per_row = heads * per_head + std::int64_t{shape.heads} * (8 + shape.layers);
  const std::int64_t lists = std::int64_t{shape.heads} * 8;
  const std::int64_t shadow =
      shape.max_shadow_rows > 0 ? ShadowCheck::Bytes(ShadowShapeOf(config, shape)) : 0;
  return rows * per_row + lists + std::int64_t{shape.max_context} * config.rotary_dim * 4 + shadow;
}

std::int64_t RoutedAttention::BytesPerBlock(const ModelConfig& config,
                                            const RoutedAttentionShape& shape,
                                            const Kernels& kernels) {
  return std::int64_t{shape.layers} * shape.heads * kernels.PageBytes(config.head_dim);
}

absl::StatusOr<std::unique_ptr<RoutedAttention>> RoutedAttention::Create(
    const ModelConfig& config, const RoutedAttentionShape& shape, MetaController* controller,
    Kernels& kernels) {
  std::unique_ptr<RoutedAttention> attention(
      new RoutedAttention(config, shape, controller, kernels));
  if (absl::Status s = attention->Allocate(); !s.ok()) return s;
  if (absl::Status s = attention->LoadRope(); !s.ok()) return s;
  if (shape.max_shadow_rows > 0) {
    auto shadow = ShadowCheck::Create(ShadowShapeOf(config, shape), kernels);
    if (!shadow.ok()) return shadow.status();
    attention->shadow_ = *std::move(shadow);
  }
  return attention;
}

absl::Status RoutedAttention::Allocate() {
  const std::int64_t rows = shape_.max_rows, heads = QueryHeads(*config_, shape_);
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
      {&near_stats_, shape_.near_stats ? rows * heads * 8 : 0},
      {&kept_o_, shape_.mixtures ? rows * heads * config_->head_dim * 4 : 0},
      {&kept_m_, shape_.mixtures ? rows * heads * 4 : 0},
      {&kept_l_, shape_.mixtures ? rows * heads * 4 : 0},
      {&mixed_, shape_.mixtures ? rows * heads * config_->head_dim * 4 : 0},
      {&decisions_, std::int64_t{shape_.layers} * rows * shape_.heads},
      {&list_rows_, 2 * rows * shape_.heads * 4},
      {&list_counts_, std::int64_t{2} * shape_.heads * 4},
  };
  for (const auto& w : wanted) {
    absl::StatusOr<Buffer> buffer = kernels_->device().Allocate(static_cast<std::size_t>(w.bytes));
    if (!buffer.ok()) return buffer.status();
    *w.buffer = *std::move(buffer);
  }
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

PageTable RoutedAttention::Pages(int layer) const {
  const std::size_t offset =
      static_cast<std::size_t>(layer) * shape_.heads * kernels_->PageBytes(config_->head_dim);
  return {{&pages_, offset},
          std::int64_t{shape_.layers} * shape_.heads,
          shape_.heads,
          config_->head_dim};
}

WorkList RoutedAttention::List(Mechanism mechanism) const {
  const std::size_t which = mechanism == Mechanism::kFull ? 0 : 1;
  const std::size_t heads = static_cast<std::size_t>(shape_.heads);
  return {{&list_rows_, which * heads * static_cast<std::size_t>(shape_.max_rows) * 4},
          {&list_counts_, which * heads * 4},
          shape_.max_rows};
}

View RoutedAttention::Decisions(int layer, const StepBatch& batch) const {
  return {&decisions_, static_cast<std::size_t>(layer * batch.rows().tokens * shape_.heads)};
}

MetaController::Inputs RoutedAttention::ControllerInputs(int layer, const StepBatch& batch,
                                                         const Io& io) const {
  return {&batch, Pages(layer), io.x, {&q_}, partial(), {&near_stats_}};
}

DecisionRows RoutedAttention::RowsOf(const StepBatch& batch) const {
  return {.request = batch.requests(),
          .position = batch.positions(),
          .eligible = batch.eligible(),
          .layers = shape_.layers,
          .head_begin = shape_.head_begin,
          .head_end = shape_.head_begin + shape_.heads};
}

// Decisions from elsewhere may ask for linear attention whatever the policies say.
bool RoutedAttention::NeedsOdds(const StepBatch& batch) const {
  return controller_ != nullptr && (shape_.source != nullptr || batch.needs_controller());
}

// Decisions from elsewhere never mix.
bool RoutedAttention::Mixes(const StepBatch& batch) const {
  return shape_.mixtures && shape_.source == nullptr && batch.needs_controller();
}

absl::Status RoutedAttention::BeginStep(const StepBatch& batch, Stream& stream) {
  if (shadow_ != nullptr) {
    if (absl::Status s = shadow_->BeginStep(batch, stream); !s.ok()) return s;
  }
  if (shape_.source == nullptr) return absl::OkStatus();
  given_.resize(static_cast<std::size_t>(shape_.layers * batch.plan_rows() * shape_.heads));
  if (absl::Status s = shape_.source->Decide(RowsOf(batch), given_); !s.ok()) return s;
  Resize(given_, {batch.plan_rows(), batch.rows().tokens}, shape_.heads,
         static_cast<std::uint8_t>(Mechanism::kLocal));
  kernels_->device().CopyIn(given_.data(), View{&decisions_}, given_.size(), stream);
  return absl::OkStatus();
}

void RoutedAttention::Decide(int layer, const StepBatch& batch, const MetaController::Inputs& in,
                             Stream& stream) {
  const View decisions = Decisions(layer, batch);
  if (shape_.source != nullptr) return;  // BeginStep has copied them in
  if (batch.needs_controller()) {
    controller_->Decide(layer, in, decisions, stream);
  } else {
    kernels_->ForcedRoute({batch.rows(), shape_.heads, batch.route(), decisions}, stream);
  }
}

void RoutedAttention::Mix(Mechanism step, int layer, const StepBatch& batch, Stream& stream) {
  kernels_->Mix({.tokens = batch.rows().tokens,
                 .heads = shape_.heads,
                 .group = config_->group(),
                 .head_dim = config_->head_dim,
                 .step = step,
                 .decisions = Decisions(layer, batch),
                 .weights = controller_->weights(layer, batch.rows().tokens),
                 .partial = partial(),
                 .kept = {{&kept_o_}, {&kept_m_}, {&kept_l_}},
                 .sum = {&mixed_}},
                stream);
}

void RoutedAttention::Compact(Mechanism mechanism, int layer, const StepBatch& batch,
                              Stream& stream) {
  kernels_->Compact({batch.rows(), shape_.heads, mechanism, Mixes(batch), Decisions(layer, batch),
                     List(mechanism)},
                    stream);
}

absl::Status RoutedAttention::Far(int layer, const StepBatch& batch,
                                  const MetaController::Inputs& in, Stream& stream) {
  const float scale = 1.0f / std::sqrt(static_cast<float>(config_->head_dim));
  const FarFullArgs full = {batch.rows(), Pages(layer),           config_->group(), scale,
                            {&q_},        List(Mechanism::kFull), partial()};
  const bool helped = shape_.helpers != nullptr && shape_.helpers->active();
  const bool mixes = Mixes(batch);
  if (mixes) Mix(Mechanism::kLocal, layer, batch, stream);
  Compact(Mechanism::kFull, layer, batch, stream);
  if (helped) {
    METATTN_RETURN_IF_ERROR(
        shape_.helpers->Send(layer, batch, {full.q, full.list, full.partial}, stream));
  }
  FarLinearArgs linear;
  if (controller_ != nullptr) {
    Compact(Mechanism::kLinear, layer, batch, stream);
    linear = controller_->LinearArgs(layer, in, List(Mechanism::kLinear));
  }
  if (controller_ == nullptr || mixes) {
    kernels_->FarFull(full, stream);
  } else {
    kernels_->Far(full, linear, stream);
  }
  if (helped) {
    METATTN_RETURN_IF_ERROR(
        shape_.helpers->Merge(batch, {full.q, full.list, full.partial}, stream));
  }
  if (!mixes) return absl::OkStatus();
  Mix(Mechanism::kFull, layer, batch, stream);
  kernels_->FarLinear(linear, stream);
  Mix(Mechanism::kLinear, layer, batch, stream);
  return absl::OkStatus();
}

absl::Status RoutedAttention::Layer(int layer, const LayerWeights& weights, const StepBatch& batch,
                                    const Io& io, Stream& stream) {
  const AttentionRows& rows = batch.rows();
  const ModelConfig& c = *config_;
  auto optional = [](const Buffer& b) { return b.bytes() == 0 ? View{} : View{&b}; };
  const PageTable pages = Pages(layer);
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
  const MetaController::Inputs in = ControllerInputs(layer, batch, io);

  kernels_->RopeAppend({.rows = rows,
                        .pages = pages,
                        .group = c.group(),
                        .qkv = io.qkv,
                        .q_norm = optional(weights.q_norm),
                        .k_norm = optional(weights.k_norm),
                        .norm_eps = c.norm_eps,
                        .cos_sin = {&cos_sin_},
                        .rotary_dim = c.rotary_dim,
                        .interleaved = c.rope_interleaved,
                        .q = {&q_}},
                       stream);
  const bool wanted = shape_.near_stats && batch.needs_controller();
  const View stats = wanted ? View{&near_stats_} : View{};
  const NearArgs near = {rows, pages, c.group(), scale, {&q_}, partial(), stats};
  if (controller_ != nullptr) controller_->Absorb(layer, in, stream);
  if (NeedsOdds(batch)) {
    kernels_->NearAndOdds(near, controller_->OddsArgs(layer, in), stream);
  } else {
    kernels_->Near(near, stream);
  }
  if (shadow_ != nullptr) shadow_->Full(layer, batch, near, stream);
  Decide(layer, batch, in, stream);
  METATTN_RETURN_IF_ERROR(Far(layer, batch, in, stream));
  kernels_->Normalize(
      {partial(), rows.tokens, static_cast<int>(QueryHeads(c, shape_)), c.head_dim, io.out},
      stream);
  if (shadow_ != nullptr) shadow_->Routed(layer, batch, io.out, stream);
  return absl::OkStatus();
}

void RoutedAttention::CopyOut(const StepBatch& batch, Stream& stream) {
  const auto cells = static_cast<std::size_t>(shape_.layers * batch.rows().tokens * shape_.heads);
  const bool decided = shape_.source == nullptr && batch.needs_controller();
  decided_.resize(cells);
  uncertainty_.resize(decided ? cells : 0);
  weights_.resize(uncertainty_.size() * kMechanisms);
  margins_.resize(shape_.recorder != nullptr ? uncertainty_.size() : 0);
  Device& device = kernels_->device();
  device.CopyOut(View{&decisions_}, decided_.data(), cells, stream);
  if (decided) {
    device.CopyOut(controller_->uncertainty(), uncertainty_.data(), cells * 4, stream);
    device.CopyOut(controller_->weights(), weights_.data(), weights_.size() * 4, stream);
    if (!margins_.empty()) {
      device.CopyOut(controller_->margin(), margins_.data(), margins_.size() * 4, stream);
    }
  }
  if (shadow_ != nullptr) shadow_->CopyOut(batch, stream);
}

absl::StatusOr<StepRouting> RoutedAttention::EndStep(const StepBatch& batch) {
  const std::array rows = {batch.rows().tokens, batch.plan_rows()};  // padding goes
  Resize(decided_, rows, shape_.heads, std::uint8_t{0});
  Resize(uncertainty_, rows, shape_.heads, 0.0F);
  Resize(weights_, rows, shape_.heads * kMechanisms, 0.0F);
  Resize(margins_, rows, shape_.heads, 0.0F);
  if (shape_.recorder != nullptr) {
    if (absl::Status s = shape_.recorder->Record(RowsOf(batch), decided_, margins_); !s.ok())
      return s;
  }
  const std::int64_t d = config_->head_dim, g = config_->group();
  AttentionCosts costs = {.token = {d * 4, g * d * 2}, .sinks = batch.rows().sinks};
  if (controller_ != nullptr) controller_->AddCosts(NeedsOdds(batch), costs);
  StepRouting routing = CountRouting({.layers = shape_.layers,
                                      .heads = shape_.heads,
                                      .sequences = batch.plan_sequences(),
                                      .costs = costs,
                                      .position = batch.positions(),
                                      .far_end = batch.far_ends(),
                                      .linear_end = batch.linear_ends(),
                                      .sequence = batch.sequences(),
                                      .eligible = batch.eligible(),
                                      .decisions = decided_,
                                      .uncertainty = uncertainty_,
                                      .weights = weights_,
                                      .routed = batch.routed()});
  if (shadow_ != nullptr) routing.shadow = shadow_->EndStep(batch);
  return routing;
}

}  // namespace metattn
