#include "engine/model/step_batch.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace metattn {
namespace {

absl::Status TooMany(const char* what, std::int64_t has, std::int64_t limit) {
  return absl::InvalidArgumentError(
      absl::StrFormat("step plan: %d %s, at most %d are possible", has, what, limit));
}

}  // namespace

std::int32_t NearBegin(std::int32_t position, int window, bool exact) {
  const std::int32_t first = std::max(0, position - window + 1);
  return exact ? first : first / kBlockTokens * kBlockTokens;
}

absl::StatusOr<std::unique_ptr<StepBatch>> StepBatch::Create(const StepBatchLimits& limits,
                                                             Device& device) {
  std::unique_ptr<StepBatch> batch(new StepBatch(limits, device));
  const std::int64_t blocks_per_sequence = (limits.max_context + kBlockTokens - 1) / kBlockTokens;
  const std::int64_t words = std::int64_t{limits.max_rows} * (limits.linear_all ? 8 : 7) +
                             (limits.max_rows + 3) / 4 + 4 * (limits.max_sequences + 1) +
                             limits.max_logit_rows + limits.max_sequences * blocks_per_sequence;
  absl::StatusOr<Buffer> buffer =
      device.Allocate(static_cast<std::size_t>(words) * sizeof(std::int32_t));
  if (!buffer.ok()) return buffer.status();
  batch->arrays_ = *std::move(buffer);
  batch->staging_.reserve(words);
  return batch;
}

absl::Status StepBatch::CheckStates(const StepPlan& plan) const {
  if (limits_.state_slots == 0) {
    for (const RoutePolicy& p : plan.policy) {
      if (p.route != Route::kRouted && p.route != Route::kLinear) continue;
      return absl::InvalidArgumentError("step plan: a routed row, but there is no controller");
    }
    return absl::OkStatus();
  }
  std::vector<bool> taken(static_cast<std::size_t>(limits_.state_slots));
  for (const StepSequence& s : plan.sequences) {
    for (const std::int32_t slot : {s.state_slot, s.state_load, s.state_save}) {
      if (slot >= limits_.state_slots) {
        return TooMany("as state slot", slot, limits_.state_slots - 1);
      }
    }
    if (taken[static_cast<std::size_t>(s.state_slot)]) {
      return absl::InvalidArgumentError(
          absl::StrFormat("step plan: two sequences in state slot %d", s.state_slot));
    }
    taken[static_cast<std::size_t>(s.state_slot)] = true;
  }
  return absl::OkStatus();
}

absl::Status StepBatch::Check(const StepPlan& plan) const {
  const auto rows = static_cast<std::int64_t>(plan.tokens.size());
  const auto sequences = static_cast<std::int64_t>(plan.sequences.size());
  const auto logits = static_cast<std::int64_t>(plan.logit_rows.size() + plan.best_rows.size());
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
  if (absl::Status s = CheckStates(plan); !s.ok()) return s;
  for (std::int32_t id : plan.tokens) {
    if (id < 0 || id >= limits_.vocab) {
      return absl::InvalidArgumentError(
          absl::StrFormat("step plan: token id %d, the vocabulary has %d", id, limits_.vocab));
    }
  }
  return absl::OkStatus();
}

std::int32_t StepBatch::LinearEnd(std::int32_t position) const {
  if (limits_.linear_all) return position + 1;
  return NearBegin(position, limits_.window, limits_.exact_window);
}

void StepBatch::FillRows(const StepPlan& plan) {
  for (std::vector<std::int32_t>* v : {&position_, &sequence_, &near_begin_, &far_end_,
                                       &linear_end_, &blocks_, &state_slot_, &state_end_}) {
    v->clear();
  }
  const AttentionRows rule = {.sinks = limits_.sinks, .linear_all = limits_.linear_all};
  request_.clear();
  eligible_.clear();
  row_begin_.assign(1, 0);
  table_begin_.assign(1, 0);
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {
    const StepSequence& s = plan.sequences[i];
    for (std::int32_t t = s.start; t < s.start + s.rows; ++t) {
      const std::int32_t begin = NearBegin(t, limits_.window, limits_.exact_window);
      position_.push_back(t);
      sequence_.push_back(static_cast<std::int32_t>(i));
      near_begin_.push_back(begin);
      far_end_.push_back(begin);
      linear_end_.push_back(LinearEnd(t));
      request_.push_back(s.id);
      eligible_.push_back(rule.Eligible(begin) ? 1 : 0);
    }
    const std::size_t needed = (s.start + s.rows + kBlockTokens - 1) / kBlockTokens;
    blocks_.insert(blocks_.end(), s.blocks.begin(),
                   s.blocks.begin() + static_cast<std::ptrdiff_t>(needed));
    row_begin_.push_back(static_cast<std::int32_t>(position_.size()));
    table_begin_.push_back(static_cast<std::int32_t>(blocks_.size()));
    state_slot_.push_back(s.state_slot);
    const std::int32_t held = s.state_position < 0 ? 0 : LinearEnd(s.state_position);
    state_end_.push_back(held / kBlockTokens * kBlockTokens);
  }
}

// Puts an array behind those that are there, at a whole word; returns its offset in bytes.
template <typename T>
std::size_t StepBatch::Place(const std::vector<T>& values) {
  constexpr std::size_t kWord = sizeof(std::int32_t);
  const std::size_t word = staging_.size(), bytes = values.size() * sizeof(T);
  staging_.resize(word + (bytes + kWord - 1) / kWord);
  if (bytes > 0) std::memcpy(staging_.data() + word, values.data(), bytes);
  return word * kWord;
}

void StepBatch::PlacePolicies(const std::vector<RoutePolicy>& policy) {
  route_.clear();
  routed_.clear();
  cost_weight_.clear();
  eta_.clear();
  needs_controller_ = false;
  for (const RoutePolicy& p : policy) {
    route_.push_back(static_cast<std::uint8_t>(p.route));
    routed_.push_back(p.route == Route::kRouted ? 1 : 0);
    cost_weight_.push_back(p.cost_weight);
    eta_.push_back(p.eta);
    needs_controller_ = needs_controller_ || p.route == Route::kRouted || p.route == Route::kLinear;
  }
  offset_route_ = Place(route_);
  offset_weight_ = Place(cost_weight_);
  offset_eta_ = Place(eta_);
}

std::string StepBatch::shape() const {
  if (rows_.tokens != rows_.sequences || !shadow_rows_.empty()) return {};
  return absl::StrCat(rows_.tokens, " rows, ", logit_count_, " with logits, ", best_count_,
                      " with the best one", needs_controller_ ? ", routed" : "");
}

absl::Status StepBatch::Load(const StepPlan& plan, Stream& stream) {
  if (absl::Status s = Check(plan); !s.ok()) return s;
  FillRows(plan);
  shadow_rows_ = plan.shadow_rows;
  staging_.clear();
  offset_tokens_ = Place(plan.tokens);
  offset_head_ = Place(plan.logit_rows);
  Place(plan.best_rows);  // right behind
  PlacePolicies(plan.policy);
  rows_ = {.tokens = static_cast<std::int64_t>(plan.tokens.size()),
           .sequences = static_cast<int>(plan.sequences.size()),
           .position = {&arrays_, Place(position_)},
           .sequence = {&arrays_, Place(sequence_)},
           .row_begin = {&arrays_, Place(row_begin_)},
           .near_begin = {&arrays_, Place(near_begin_)},
           .far_end = {&arrays_, Place(far_end_)},
           .table_begin = {&arrays_, Place(table_begin_)},
           .sinks = limits_.sinks};
  rows_.linear_all = limits_.linear_all;
  rows_.linear_begin = limits_.linear_all ? 0 : limits_.sinks;
  rows_.linear_end = limits_.linear_all ? View{&arrays_, Place(linear_end_)} : rows_.far_end;
  rows_.state_slot = {&arrays_, Place(state_slot_)};
  rows_.state_end = {&arrays_, Place(state_end_)};
  rows_.blocks = {&arrays_,
                  Place(blocks_)};  // last: steps of equal shape have all else in one place
  logit_count_ = static_cast<int>(plan.logit_rows.size());
  best_count_ = static_cast<int>(plan.best_rows.size());
  device_->CopyIn(staging_.data(), View{&arrays_}, staging_.size() * sizeof(std::int32_t), stream);
  return absl::OkStatus();
}

}  // namespace metattn
