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

std::int64_t PaddedSize(std::int64_t count, std::int64_t most) {
  std::int64_t size = (count + 7) / 8 * 8;
  if (count <= 4) size = count <= 2 ? count : 4;
  return size > most ? count : size;
}

absl::StatusOr<std::unique_ptr<StepBatch>> StepBatch::Create(const StepBatchLimits& limits,
                                                             Device& device) {
  std::unique_ptr<StepBatch> batch(new StepBatch(limits, device));
  const std::int64_t blocks_per_sequence = (limits.max_context + kBlockTokens - 1) / kBlockTokens;
  const std::int64_t sequences =
      limits.padded ? PaddedSize(limits.max_sequences, limits.max_rows) : limits.max_sequences;
  const std::int64_t words = std::int64_t{limits.max_rows} * (limits.linear_all ? 8 : 7) +
                             (limits.max_rows + 3) / 4 + 4 * (sequences + 1) +
                             limits.max_logit_rows + limits.max_sequences * blocks_per_sequence +
                             (sequences - limits.max_sequences);
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

// How much padding the step gets.
void StepBatch::Size(const StepPlan& plan) {
  plan_rows_ = padded_rows_ = static_cast<std::int64_t>(plan.tokens.size());
  plan_sequences_ = static_cast<int>(plan.sequences.size());
  logit_count_ = padded_logits_ = static_cast<int>(plan.logit_rows.size());
  best_count_ = padded_best_ = static_cast<int>(plan.best_rows.size());
  if (!limits_.padded || plan_rows_ != plan_sequences_ || !plan.shadow_rows.empty()) return;
  padded_rows_ = PaddedSize(plan_rows_, limits_.max_rows);
  const int logits = static_cast<int>(PaddedSize(logit_count_, limits_.max_logit_rows));
  const int best = static_cast<int>(PaddedSize(best_count_, limits_.max_logit_rows));
  if (logits + best > limits_.max_logit_rows) return;
  padded_logits_ = logits;
  padded_best_ = best;
}

// Sequences of one token each, all in the spare block: they write the same there, and read no more.
void StepBatch::PadRows() {
  for (auto row = static_cast<std::int32_t>(plan_rows_); row < padded_rows_; ++row) {
    position_.push_back(0);
    sequence_.push_back(row);
    near_begin_.push_back(0);
    far_end_.push_back(0);
    linear_end_.push_back(LinearEnd(0));
    row_begin_.push_back(row + 1);
    blocks_.push_back(static_cast<std::int32_t>(limits_.blocks));
    table_begin_.push_back(static_cast<std::int32_t>(blocks_.size()));
    state_slot_.push_back(limits_.state_slots);
    state_end_.push_back(0);
  }
}

template <typename T>
std::vector<T> StepBatch::Padded(const std::vector<T>& rows, const T& with) const {
  std::vector<T> padded = rows;
  padded.resize(static_cast<std::size_t>(padded_rows_), with);
  return padded;
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

// The wanted rows of the head, padded with the first row.
void StepBatch::PlaceHead(const StepPlan& plan) {
  std::vector<std::int32_t> rows = plan.logit_rows;
  rows.resize(static_cast<std::size_t>(padded_logits_));
  rows.insert(rows.end(), plan.best_rows.begin(), plan.best_rows.end());
  rows.resize(static_cast<std::size_t>(head_count()));
  offset_head_ = Place(rows);
}

std::pair<std::int32_t, std::int32_t> StepBatch::PositionsOf(int sequence) const {
  const auto s = static_cast<std::size_t>(sequence);
  if (row_begin_[s] == row_begin_[s + 1]) return {0, 0};
  const std::int32_t first = position_[static_cast<std::size_t>(row_begin_[s])];
  return {first, first + row_begin_[s + 1] - row_begin_[s]};
}

std::span<const std::int32_t> StepBatch::BlocksOf(int sequence) const {
  const auto s = static_cast<std::size_t>(sequence);
  const auto begin = static_cast<std::size_t>(table_begin_[s]);
  return std::span(blocks_).subspan(begin, static_cast<std::size_t>(table_begin_[s + 1]) - begin);
}

std::string StepBatch::shape() const {
  if (plan_rows_ != plan_sequences_ || !shadow_rows_.empty()) return {};
  return absl::StrCat(padded_rows_, " rows, ", padded_logits_, " with logits, ", padded_best_,
                      " with the best one", needs_controller_ ? ", routed" : "");
}

absl::Status StepBatch::Load(const StepPlan& plan, Stream& stream) {
  if (absl::Status s = Check(plan); !s.ok()) return s;
  Size(plan);
  FillRows(plan);
  PadRows();
  shadow_rows_ = plan.shadow_rows;
  staging_.clear();
  offset_tokens_ = Place(Padded(plan.tokens, std::int32_t{0}));
  PlaceHead(plan);
  PlacePolicies(Padded(plan.policy, RoutePolicy{.route = Route::kLocal}));
  rows_ = {.tokens = padded_rows_,
           .sequences = plan_sequences_ + static_cast<int>(padded_rows_ - plan_rows_),
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
  device_->CopyIn(staging_.data(), View{&arrays_}, staging_.size() * sizeof(std::int32_t), stream);
  return absl::OkStatus();
}

}  // namespace metattn
