#include "engine/model/meta_controller.h"

#include <algorithm>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/formats/status_macros.h"
#include "engine/model/byte_weights.h"
#include "engine/model/tensor_values.h"
#include "engine/model/upload.h"

namespace metattn {
namespace {

// Bytes [begin, end) of the outermost extent of a tensor.
std::span<const std::byte> Outer(const TensorInfo& tensor, std::int64_t begin, std::int64_t end) {
  const std::size_t stride = tensor.data.size() / static_cast<std::size_t>(tensor.shape.front());
  return tensor.data.subspan(static_cast<std::size_t>(begin) * stride,
                             static_cast<std::size_t>(end - begin) * stride);
}

// Feature maps are stored for Hugging Face's order of a head's dimensions (RoPE pairs i and
// i + rotary_dim / 2), so that one controller serves every file of a model. Where the model keeps
// its pairs side by side, the columns move along: to 2i comes i, to 2i + 1 comes i + rotary_dim
// / 2.
void InterleaveColumns(std::span<std::uint16_t> maps, const ModelConfig& c) {
  const auto d = static_cast<std::size_t>(c.head_dim);
  const auto half = static_cast<std::size_t>(c.rotary_dim) / 2;
  std::vector<std::uint16_t> stored(d);
  for (std::size_t at = 0; at < maps.size(); at += d) {
    const std::span<std::uint16_t> row = maps.subspan(at, d);
    std::copy(row.begin(), row.end(), stored.begin());
    for (std::size_t i = 0; i < half; ++i) {
      row[2 * i] = stored[i];
      row[2 * i + 1] = stored[half + i];
    }
  }
}

std::vector<std::uint16_t> FeatureMaps(std::span<const std::byte> stored, const ModelConfig& c) {
  std::vector<std::uint16_t> maps(stored.size() / sizeof(std::uint16_t));
  std::copy(stored.begin(), stored.end(), std::as_writable_bytes(std::span(maps)).begin());
  if (c.rope_interleaved) InterleaveColumns(maps, c);
  return maps;
}

// Matrices [rows, columns] f32, one after the other, to [columns, rows] each.
std::vector<float> Transposed(std::span<const std::byte> stored, std::int64_t rows,
                              std::int64_t columns) {
  std::vector<float> from(stored.size() / sizeof(float)), to;
  std::copy(stored.begin(), stored.end(), std::as_writable_bytes(std::span(from)).begin());
  for (auto matrix = from.begin(); matrix != from.end(); matrix += rows * columns) {
    for (std::int64_t c = 0; c < columns; ++c) {
      for (std::int64_t r = 0; r < rows; ++r) to.push_back(matrix[r * columns + c]);
    }
  }
  return to;
}

// `count` copies of the bytes, one after the other.
std::vector<std::byte> Repeat(std::span<const std::byte> bytes, std::int64_t count) {
  std::vector<std::byte> all;
  all.reserve(bytes.size() * static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) all.insert(all.end(), bytes.begin(), bytes.end());
  return all;
}

// Rows that are multiplied with x in every step: a byte a weight where that loses nothing. Decided
// for each KV head by itself, so that its sums are the same on every number of ranks.
MatrixPart ProjectionPart(std::span<const std::byte> bf16, std::int64_t rows,
                          std::vector<std::vector<std::byte>>& kept) {
  const std::int64_t cols = static_cast<std::int64_t>(bf16.size()) / 2 / rows;
  if (cols % Info(DType::kQ8_0).block_values == 0) {
    if (std::optional<std::vector<std::byte>> blocks = ByteWeights(bf16); blocks.has_value()) {
      kept.push_back(*std::move(blocks));
      return {DType::kQ8_0, kept.back().data(), rows, BytesFor(DType::kQ8_0, cols)};
    }
  }
  return {DType::kBF16, bf16.data(), rows, BytesFor(DType::kBF16, cols)};
}

}  // namespace

std::int64_t MetaController::Bytes(const ControllerSpec& spec, const ModelConfig& c, int heads,
                                   const MetaControllerShape& shape) {
  const std::int64_t d = c.head_dim, q_heads = std::int64_t{heads} * c.group();
  const std::int64_t n = ControlScalars(spec.features, c.group());
  const std::int64_t f = Features(spec.feature_map, c.head_dim);
  const std::int64_t maps =
      spec.feature_map == FeatureMap::kHedgehog ? (q_heads + heads) * d * d * 2 : 0;
  const std::int64_t projection = (spec.width + std::int64_t{3} * heads) * c.hidden * 2;
  const std::int64_t head_weights = heads * (2 * n + spec.width * (n + 4) + 6 + 3 * n);
  const std::int64_t per_layer = maps + projection + 4 * (head_weights + 2 * q_heads);
  // projected and, for every layer, U, margin and weights; phi(q) and its odds
  const std::int64_t per_row =
      4 * (spec.width + std::int64_t{3 + (2 + kMechanisms) * c.layers} * heads + q_heads * (f + 1));
  return c.layers * per_layer + shape.max_rows * per_row +
         std::int64_t{shape.state_slots} * c.layers * heads *
             StateBytes(static_cast<int>(f), c.head_dim);
}

void MetaController::AddCosts(bool odds, AttentionCosts& costs) const {
  const std::int64_t f = features(), d = config_->head_dim, g = config_->group();
  const bool learned = spec_.feature_map == FeatureMap::kHedgehog;
  const std::int64_t map = learned ? d * d : 0;
  costs.state_tokens = state_tokens();
  costs.linear_all = spec_.linear_all;
  costs.linear_begin = spec_.linear_all ? 0 : spec_.sinks;
  costs.state = {f * d * 4, g * f * d};
  costs.key_value = {d * 2, g * (f + d)};  // similarity again, then V
  if (!odds) return;
  costs.features = {(learned ? g * d * d * 2 : 0) + f * 4, g * (map + f)};
  costs.key = {d * 2, map + g * f};
}

float MetaController::state_tokens() const {
  return static_cast<float>(StateBytes(features(), config_->head_dim)) /
         static_cast<float>(4 * config_->head_dim);
}

View MetaController::weights(int layer, std::int64_t tokens) const {
  return {&weights_,
          static_cast<std::size_t>(layer * tokens * heads_) * kMechanisms * sizeof(float)};
}

absl::StatusOr<std::unique_ptr<MetaController>> MetaController::Create(
    const ControllerFile& file, const ModelConfig& config, const Slice& slice,
    const MetaControllerShape& shape, Kernels& kernels) {
  std::unique_ptr<MetaController> controller(
      new MetaController(file.spec(), config, slice.heads(), shape, kernels));
  controller->layers_.resize(static_cast<std::size_t>(config.layers));
  UploadTogether tensors;
  for (int layer = 0; layer < config.layers; ++layer) {
    controller->LoadFeatureMaps(file, layer, slice, tensors);
    controller->LoadLayer(file, layer, slice, tensors);
    METATTN_RETURN_IF_ERROR(controller->LoadProjection(file, layer, slice));
  }
  METATTN_RETURN_IF_ERROR(tensors.Finish(kernels.device(), &controller->tensors_));
  METATTN_RETURN_IF_ERROR(controller->Allocate());
  return controller;
}

void MetaController::LoadFeatureMaps(const ControllerFile& file, int index, const Slice& slice,
                                     UploadTogether& tensors) {
  const TensorInfo* keys = file.Find(index, "linear.w_k");
  const TensorInfo* queries = file.Find(index, "linear.w_q");
  if (keys == nullptr || queries == nullptr) return;  // elu1 has no maps
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  const std::int64_t h0 = slice.head_begin, h1 = slice.head_end, g = config_->group();
  std::vector<std::uint16_t> maps = FeatureMaps(Outer(*keys, h0, h1), *config_);
  tensors.Add(std::as_bytes(std::span(maps)), &layer.w_k);
  maps = FeatureMaps(Outer(*queries, h0 * g, h1 * g), *config_);
  const auto d = static_cast<std::size_t>(config_->head_dim), size = d * d;
  for (std::size_t at = 0; at < maps.size(); at += size) {
    kernels_->ArrangeQueryMap(std::span(maps).subspan(at, size), config_->head_dim);
  }
  tensors.Add(std::as_bytes(std::span(maps)), &layer.w_q);
}

void MetaController::LoadLayer(const ControllerFile& file, int index, const Slice& slice,
                               UploadTogether& tensors) {
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  const std::int64_t h0 = slice.head_begin, h1 = slice.head_end, g = config_->group();
  const struct {
    const char* name;
    std::int64_t begin, end;
    View* to;
  } wanted[] = {
      {"linear.log_gain", h0 * g, h1 * g, &layer.log_gain},
      {"linear.kappa", h0 * g, h1 * g, &layer.kappa},
      {"controller.scalar_mean", h0, h1, &layer.scalar_mean},
      {"controller.scalar_scale", h0, h1, &layer.scalar_scale},
      {"controller.scalars", h0, h1, &layer.scalars},
      {"controller.bias", h0, h1, &layer.bias},
      {"controller.out", h0, h1, &layer.out},
      {"controller.out_bias", h0, h1, &layer.out_bias},
      {"controller.scalars_skip", h0, h1, &layer.scalars_skip},
  };
  for (const auto& w : wanted) {
    const TensorInfo* tensor = file.Find(index, w.name);
    const bool token = spec_.per_token && std::string_view(w.name).starts_with("controller.");
    std::span<const std::byte> part = token ? tensor->data : Outer(*tensor, w.begin, w.end);
    std::vector<float> by_scalar;
    if (w.to == &layer.scalars) {
      by_scalar = Transposed(part, spec_.width, ControlScalars(spec_.features, config_->group()));
      part = std::as_bytes(std::span(by_scalar));
    }
    if (token) {
      tensors.Add(Repeat(part, h1 - h0), w.to);
    } else {
      tensors.Add(part, w.to);
    }
  }
  std::vector<float> offsets;
  for (std::int64_t h = h0; h < h1; ++h) {
    const PerMechanism& o =
        spec_.offsets[static_cast<std::size_t>(index)][static_cast<std::size_t>(h)];
    offsets.insert(offsets.end(), o.begin(), o.end());
  }
  tensors.Add(std::as_bytes(std::span(offsets)), &layer.offset);
}

absl::Status MetaController::LoadProjection(const ControllerFile& file, int index,
                                            const Slice& slice) {
  const TensorInfo* x = file.Find(index, "controller.x");
  const TensorInfo* skip = file.Find(index, "controller.x_skip");
  std::vector<std::vector<std::byte>> kept;  // until they are packed
  std::vector<MatrixPart> parts = {ProjectionPart(x->data, spec_.width, kept)};
  for (std::int64_t h = slice.head_begin; h < slice.head_end; ++h) {
    const std::int64_t from = spec_.per_token ? 0 : h;
    parts.push_back(ProjectionPart(Outer(*skip, from, from + 1), kMechanisms, kept));
  }
  Layer& layer = layers_[static_cast<std::size_t>(index)];
  METATTN_ASSIGN_OR_RETURN(layer.project, kernels_->Pack(parts, config_->hidden));
  return absl::OkStatus();
}

absl::Status MetaController::Allocate() {
  const std::int64_t rows = shape_.max_rows, q_heads = std::int64_t{heads_} * config_->group();
  const std::int64_t counters = std::int64_t{config_->layers} * heads_;
  const struct {
    Buffer* buffer;
    std::int64_t bytes;
  } wanted[] = {
      {&states_, shape_.state_slots * counters * StateBytes(features(), config_->head_dim)},
      {&projected_, rows * (spec_.width + std::int64_t{3} * heads_) * 4},
      {&phi_q_, rows * q_heads * features() * 4},
      {&lse_far_, rows * q_heads * 4},
      {&uncertainty_, rows * counters * 4},
      {&weights_, rows * counters * kMechanisms * 4},
      {&margin_, rows * counters * 4},
  };
  for (const auto& w : wanted) {
    METATTN_ASSIGN_OR_RETURN(*w.buffer,
                             kernels_->device().Allocate(static_cast<std::size_t>(w.bytes)));
  }
  return absl::OkStatus();
}

void MetaController::CopyState(std::int32_t from, std::int32_t to, Stream& stream) {
  if (from == to) return;
  const std::int64_t bytes =
      std::int64_t{config_->layers} * heads_ * StateBytes(features(), config_->head_dim);
  const auto place = [&](std::int32_t slot) {
    return View{&states_, static_cast<std::size_t>(slot * bytes)};
  };
  kernels_->device().Copy(place(from), place(to), static_cast<std::size_t>(bytes), stream);
}

void MetaController::BeginStep(const StepPlan& plan, Stream& stream) {
  marks_.clear();
  for (const StepSequence& s : plan.sequences) {
    if (s.state_load >= 0) CopyState(s.state_load, s.state_slot, stream);
  }
}

void MetaController::EndStep(const StepPlan& plan, Stream& stream) {
  for (const StepSequence& s : plan.sequences) {
    if (s.state_save >= 0) CopyState(s.state_slot, s.state_save, stream);
  }
}

LinearShape MetaController::Shape(int layer, const Inputs& in) const {
  const std::size_t offset = static_cast<std::size_t>(layer) * static_cast<std::size_t>(heads_) *
                             static_cast<std::size_t>(StateBytes(features(), config_->head_dim));
  return {.rows = in.batch->rows(),
          .pages = in.pages,
          .states = {{&states_, offset}, std::int64_t{config_->layers} * heads_},
          .group = config_->group(),
          .map = spec_.feature_map,
          .w_k = layers_[static_cast<std::size_t>(layer)].w_k};
}

void MetaController::Absorb(int index, const Inputs& in, Stream& stream) {
  kernels_->LinearAbsorb({Shape(index, in)}, stream);
}

LinearOddsArgs MetaController::OddsArgs(int index, const Inputs& in) const {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  return {.shape = Shape(index, in),
          .w_q = layer.w_q,
          .log_gain = layer.log_gain,
          .kappa = layer.kappa,
          .q = in.q,
          .near = in.near,
          .phi_q = {&phi_q_},
          .lse_far = {&lse_far_}};
}

void MetaController::Decide(int index, const Inputs& in, View decisions, Stream& stream) {
  const Layer& layer = layers_[static_cast<std::size_t>(index)];
  const AttentionRows& rows = in.batch->rows();
  const std::size_t cell = static_cast<std::size_t>(index * rows.tokens * heads_) * sizeof(float);
  const int begin = stream.Mark();
  kernels_->Linear({layer.project.get(), in.x, {}, {&projected_}, rows.tokens}, stream);
  kernels_->Control({.rows = rows,
                     .heads = heads_,
                     .group = config_->group(),
                     .width = spec_.width,
                     .state_tokens = state_tokens(),
                     .features = spec_.features,
                     .link = spec_.link,
                     .uncertain = spec_.uncertain,
                     .epsilon = spec_.epsilon,
                     .temperature = spec_.temperature,
                     .projected = {&projected_},
                     .near = in.near,
                     .near_stats = in.near_stats,
                     .lse_far = {&lse_far_},
                     .x = in.x,
                     .dim = config_->hidden,
                     .last_position = spec_.max_context - 1,
                     .scalar_mean = layer.scalar_mean,
                     .scalar_scale = layer.scalar_scale,
                     .scalars = layer.scalars,
                     .bias = layer.bias,
                     .out = layer.out,
                     .out_bias = layer.out_bias,
                     .scalars_skip = layer.scalars_skip,
                     .offset = layer.offset,
                     .route = in.batch->route(),
                     .cost_weight = in.batch->cost_weight(),
                     .eta = in.batch->eta(),
                     .decisions = decisions,
                     .uncertainty = {&uncertainty_, cell},
                     .margin = {&margin_, cell},
                     .weights = weights(index, rows.tokens)},
                    stream);
  marks_.emplace_back(begin, stream.Mark());
}

FarLinearArgs MetaController::LinearArgs(int index, const Inputs& in, const WorkList& list) const {
  return {.shape = Shape(index, in),
          .phi_q = {&phi_q_},
          .lse_far = {&lse_far_},
          .list = list,
          .partial = in.near,
          .alone = spec_.linear_all};
}

}  // namespace metattn
