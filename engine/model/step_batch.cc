#include "engine/model/step_batch.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_format.h"

namespace metattn {
namespace {

absl::Status TooMany(const char* what, std::int64_t has, std::int64_t limit) {
  return absl::InvalidArgumentError(
      absl::StrFormat("step plan: %d %s, at most %d are possible", has, what, limit));
}

}  // namespace

std::int32_t NearBegin(std::int32_t position, int window) {
  return std::max(0, position - window + 1) / kBlockTokens * kBlockTokens;
}

absl::StatusOr<std::unique_ptr<StepBatch>> StepBatch::Create(const StepBatchLimits& limits,
                                                             Device& device) {
  std::unique_ptr<StepBatch> batch(new StepBatch(limits, device));
  const std::int64_t blocks_per_sequence = (limits.max_context + kBlockTokens - 1) / kBlockTokens;
  const std::int64_t ints = std::int64_t{limits.max_rows} * 5 + 2 * (limits.max_sequences + 1) +
                            limits.max_logit_rows + limits.max_sequences * blocks_per_sequence;
  absl::StatusOr<Buffer> buffer =
      device.Allocate(static_cast<std::size_t>(ints) * sizeof(std::int32_t));
  if (!buffer.ok()) return buffer.status();
  batch->ints_ = *std::move(buffer);
  absl::StatusOr<Buffer> routes = device.Allocate(std::max(limits.max_rows, 1));
  if (!routes.ok()) return routes.status();
  batch->routes_ = *std::move(routes);
  batch->staging_.reserve(ints);
  return batch;
}

absl::Status StepBatch::Check(const StepPlan& plan) const {
  const auto rows = static_cast<std::int64_t>(plan.tokens.size());
  const auto sequences = static_cast<std::int64_t>(plan.sequences.size());
  const auto logits = static_cast<std::int64_t>(plan.logit_rows.size());
  if (rows > limits_.max_rows) return TooMany("rows", rows, limits_.max_rows);
  if (sequences > limits_.max_sequences)
    return TooMany("sequences", sequences, limits_.max_sequences);
  if (logits > limits_.max_logit_rows) return TooMany("logit rows", logits, limits_.max_logit_rows);
  for (const StepSequence& s : plan.sequences) {
    if (s.start + s.rows > limits_.max_context) {
      return TooMany("positions in a sequence", s.start + s.rows, limits_.max_context);
    }
    for (std::int32_t block : s.blocks) {
      if (block < 0 || block >= limits_.blocks) {
        return absl::InvalidArgumentError(
            absl::StrFormat("step plan: block %d, there are %d", block, limits_.blocks));
      }
    }
  }
  for (std::int32_t id : plan.tokens) {
    if (id < 0 || id >= limits_.vocab) {
      return absl::InvalidArgumentError(
          absl::StrFormat("step plan: token id %d, the vocabulary has %d", id, limits_.vocab));
    }
  }
  return absl::OkStatus();
}

absl::Status StepBatch::Load(const StepPlan& plan, Stream& stream) {
  if (absl::Status s = Check(plan); !s.ok()) return s;
  std::vector<std::int32_t> position, sequence, near_begin, far_end, row_begin{0}, table_begin{0},
      blocks;
  counts_ = {};
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const StepSequence& s = plan.sequences[i];
    for (std::int32_t t = s.start; t < s.start + s.rows; ++t) {
      const std::int32_t begin = NearBegin(t, limits_.window);
      const bool eligible = begin > limits_.sinks;
      position.push_back(t);
      sequence.push_back(static_cast<std::int32_t>(i));
      near_begin.push_back(begin);
      far_end.push_back(begin);
      counts_.dense_tokens += t + 1;
      counts_.near_tokens += eligible ? limits_.sinks + t - begin + 1 : t + 1;
      counts_.eligible_rows += eligible ? 1 : 0;
    }
    const std::size_t needed = (s.start + s.rows + kBlockTokens - 1) / kBlockTokens;
    blocks.insert(blocks.end(), s.blocks.begin(),
                  s.blocks.begin() + static_cast<std::ptrdiff_t>(needed));
    row_begin.push_back(static_cast<std::int32_t>(position.size()));
    table_begin.push_back(static_cast<std::int32_t>(blocks.size()));
  }

  staging_.clear();
  auto place = [&](std::span<const std::int32_t> values) {
    const std::size_t offset = staging_.size() * sizeof(std::int32_t);
    staging_.insert(staging_.end(), values.begin(), values.end());
    return offset;
  };
  offset_tokens_ = place(plan.tokens);
  offset_logits_ = place(plan.logit_rows);
  rows_ = {.tokens = static_cast<std::int64_t>(plan.tokens.size()),
           .sequences = static_cast<int>(plan.sequences.size()),
           .position = {&ints_, place(position)},
           .sequence = {&ints_, place(sequence)},
           .row_begin = {&ints_, place(row_begin)},
           .near_begin = {&ints_, place(near_begin)},
           .far_end = {&ints_, place(far_end)},
           .table_begin = {&ints_, place(table_begin)},
           .blocks = {&ints_, place(blocks)},
           .sinks = limits_.sinks};
  logit_count_ = static_cast<int>(plan.logit_rows.size());
  device_->CopyIn(staging_.data(), View{&ints_}, staging_.size() * sizeof(std::int32_t), stream);
  device_->CopyIn(plan.route.data(), View{&routes_}, plan.route.size(), stream);
  return absl::OkStatus();
}

}  // namespace metattn
