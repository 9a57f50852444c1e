#include "engine/model/shadow_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_format.h"
#include "engine/formats/status_macros.h"

namespace metattn {

void ShadowErrors::Note(double error) {
  const auto bucket = std::lower_bound(kShadowBounds.begin(), kShadowBounds.end(), error);
  ++counts[static_cast<std::size_t>(bucket - kShadowBounds.begin())];
  sum += error;
}

void ShadowErrors::Add(const ShadowErrors& other) {
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += other.counts[i];
  sum += other.sum;
}

absl::StatusOr<std::unique_ptr<ShadowCheck>> ShadowCheck::Create(const ShadowShape& shape,
                                                                 Kernels& kernels) {
  std::unique_ptr<ShadowCheck> check(new ShadowCheck(shape, kernels));
  METATTN_RETURN_IF_ERROR(check->Allocate());
  return check;
}

std::int64_t ShadowCheck::Bytes(const ShadowShape& s) {
  const std::int64_t q_heads = std::int64_t{s.heads} * s.group, width = q_heads * s.head_dim;
  return s.max_rows * (2 * width + 2 * q_heads) * 4 + std::int64_t{s.heads} * (s.max_rows + 1) * 4 +
         std::int64_t{s.layers} * s.max_picked * width * 8;
}

std::size_t ShadowCheck::ActBytes(std::int64_t values) const {
  return static_cast<std::size_t>(BytesFor(kernels_->activation_dtype(), values));
}

double ShadowCheck::Value(const std::vector<std::byte>& activations, std::size_t index) const {
  if (kernels_->activation_dtype() == DType::kBF16) {
    std::uint16_t value;
    std::memcpy(&value, activations.data() + index * sizeof value, sizeof value);
    return Bf16ToF32(value);
  }
  float value;
  std::memcpy(&value, activations.data() + index * sizeof value, sizeof value);
  return value;
}

absl::Status ShadowCheck::Allocate() {
  const std::int64_t q_heads = std::int64_t{shape_.heads} * shape_.group;
  const std::int64_t kept = std::int64_t{shape_.layers} * shape_.max_picked * width();
  const auto words = [](std::int64_t values) { return static_cast<std::size_t>(values) * 4; };
  const struct {
    Buffer* buffer;
    std::size_t bytes;
  } wanted[] = {
      {&o_, words(shape_.max_rows * width())},
      {&m_, words(shape_.max_rows * q_heads)},
      {&l_, words(shape_.max_rows * q_heads)},
      {&out_, ActBytes(shape_.max_rows * width())},
      {&rows_, words(std::int64_t{shape_.heads} * shape_.max_rows)},
      {&counts_, words(shape_.heads)},
      {&full_, ActBytes(kept)},
      {&routed_, ActBytes(kept)},
  };
  for (const auto& w : wanted) {
    METATTN_ASSIGN_OR_RETURN(*w.buffer, kernels_->device().Allocate(w.bytes));
  }
  return absl::OkStatus();
}

absl::Status ShadowCheck::BeginStep(const StepBatch& batch, Stream& stream) {
  const auto picked = batch.shadow_rows();
  if (std::cmp_greater(picked.size(), shape_.max_picked)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "step plan: %d shadow rows, at most %d are possible", picked.size(), shape_.max_picked));
  }
  if (picked.empty()) return absl::OkStatus();
  const auto heads = static_cast<std::size_t>(shape_.heads);
  const auto capacity = static_cast<std::size_t>(shape_.max_rows);
  staging_.assign(heads * capacity + heads, 0);
  for (std::size_t h = 0; h < heads; ++h) {
    std::copy(picked.begin(), picked.end(),
              staging_.begin() + static_cast<std::ptrdiff_t>(h * capacity));
    staging_[heads * capacity + h] = static_cast<std::int32_t>(picked.size());
  }
  Device& device = kernels_->device();
  device.CopyIn(staging_.data(), View{&rows_}, heads * capacity * 4, stream);
  device.CopyIn(staging_.data() + heads * capacity, View{&counts_}, heads * 4, stream);
  return absl::OkStatus();
}

void ShadowCheck::Keep(const StepBatch& batch, View from, const Buffer& to, int layer,
                       Stream& stream) const {
  const auto picked = static_cast<std::int64_t>(batch.shadow_rows().size());
  const std::int64_t place = layer * picked * width();
  kernels_->Gather({from, View{&rows_}, {&to, ActBytes(place)}, picked, width()}, stream);
}

void ShadowCheck::Full(int layer, const StepBatch& batch, const NearArgs& near, Stream& stream) {
  if (batch.shadow_rows().empty() || shape_.heads == 0) return;
  const std::int64_t rows = batch.rows().tokens,
                     q_heads = std::int64_t{shape_.heads} * shape_.group;
  Device& device = kernels_->device();
  device.Copy(near.out.o, View{&o_}, static_cast<std::size_t>(rows * width()) * 4, stream);
  device.Copy(near.out.m, View{&m_}, static_cast<std::size_t>(rows * q_heads) * 4, stream);
  device.Copy(near.out.l, View{&l_}, static_cast<std::size_t>(rows * q_heads) * 4, stream);
  const Partial partial = {{&o_}, {&m_}, {&l_}};
  const WorkList list = {{&rows_}, {&counts_}, shape_.max_rows};
  kernels_->FarFull({near.rows, near.pages, near.group, near.scale, near.q, list, partial}, stream);
  kernels_->Normalize({partial, rows, static_cast<int>(q_heads), shape_.head_dim, View{&out_}},
                      stream);
  Keep(batch, View{&out_}, full_, layer, stream);
}

void ShadowCheck::Routed(int layer, const StepBatch& batch, View out, Stream& stream) {
  if (batch.shadow_rows().empty() || shape_.heads == 0) return;
  Keep(batch, out, routed_, layer, stream);
}

void ShadowCheck::CopyOut(const StepBatch& batch, Stream& stream) {
  const auto picked = static_cast<std::int64_t>(batch.shadow_rows().size());
  host_full_.resize(ActBytes(shape_.layers * width() * picked));
  host_routed_.resize(host_full_.size());
  Device& device = kernels_->device();
  device.CopyOut(View{&full_}, host_full_.data(), host_full_.size(), stream);
  device.CopyOut(View{&routed_}, host_routed_.data(), host_routed_.size(), stream);
}

std::vector<ShadowErrors> ShadowCheck::EndStep(const StepBatch& batch) const {
  std::vector<ShadowErrors> errors;
  const std::size_t picked = batch.shadow_rows().size();
  if (picked == 0) return errors;
  errors.resize(static_cast<std::size_t>(shape_.layers));
  const auto row = static_cast<std::size_t>(width());
  if (row == 0) return errors;
  std::size_t at = 0;
  for (ShadowErrors& layer : errors) {
    for (std::size_t i = 0; i < picked; ++i) {
      double difference = 0, magnitude = 0;
      for (std::size_t end = at + row; at < end; ++at) {
        const double full = Value(host_full_, at);
        difference += std::pow(Value(host_routed_, at) - full, 2);
        magnitude += full * full;
      }
      layer.Note(magnitude > 0 ? std::sqrt(difference / magnitude) : 0);
    }
  }
  return errors;
}

}  // namespace metattn
