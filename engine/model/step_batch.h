// The device-side form of a StepPlan: the integer arrays that kernels read, and what follows from
// them by arithmetic.
//
// Owns its device arrays, sized once for the largest step. Load copies one plan in; rows() is valid
// until the next Load. One caller. Cost: one host-to-device copy of some bytes per row and block.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/step_plan.h"
#include "kernels/kernels.h"

namespace metattn {

struct StepBatchLimits {
  int max_rows = 0;
  int max_sequences = 0;
  int max_logit_rows = 0;   // with those of which only the best is wanted
  int max_context = 0;      // positions
  std::int64_t blocks = 0;  // ids are 0 .. blocks - 1
  std::int64_t vocab = 0;
  int window = 256;
  int sinks = 4;
  bool exact_window = false;  // else near windows begin at a block's first token
  bool linear_all = false;    // linear attention reads every position
  // Of linear states, snapshots included; 0: there is no controller, plans may not ask for one.
  int state_slots = 0;
  // Steps of one row a sequence get inert rows up to the next of a few sizes, so that fewer shapes
  // come and each more often. They work in block `blocks` and state slot `state_slots`, which no
  // plan names: there must be one more of both.
  bool padded = false;
};

// The size that `count` rows are padded to: 0, 1, 2, 4, 8, then multiples of 8; `count` itself
// where that is more than `most`.
std::int64_t PaddedSize(std::int64_t count, std::int64_t most);

// First position of the near window of position t, window w: of a whole block (design section 3:
// a(t)), or exactly t - w + 1.
std::int32_t NearBegin(std::int32_t position, int window, bool exact = false);

class StepBatch {
 public:
  static absl::StatusOr<std::unique_ptr<StepBatch>> Create(const StepBatchLimits& limits,
                                                           Device& device);

  // INVALID_ARGUMENT when the plan exceeds the limits (names which); nothing is changed then.
  [[nodiscard]] absl::Status Load(const StepPlan& plan, Stream& stream);

  const AttentionRows& rows() const { return rows_; }  // padding included, behind the plan's rows
  std::int64_t plan_rows() const { return plan_rows_; }
  int plan_sequences() const { return plan_sequences_; }
  View token_ids() const { return View{&arrays_, offset_tokens_}; }  // [T] i32
  // Rows whose logits are computed: those of which all are wanted, then those of which the best is.
  View head_rows() const { return View{&arrays_, offset_head_}; }      // [n] i32
  View route() const { return View{&arrays_, offset_route_}; }         // [T] u8
  View cost_weight() const { return View{&arrays_, offset_weight_}; }  // [T] f32
  View eta() const { return View{&arrays_, offset_eta_}; }             // [T] f32
  int head_count() const { return padded_logits_ + padded_best_; }     // n, padding included
  // Of both kinds: those that the plan wants, and how many there are with padding behind them.
  int logit_count() const { return logit_count_; }
  int best_count() const { return best_count_; }
  int padded_logits() const { return padded_logits_; }
  int padded_best() const { return padded_best_; }
  // Steps of equal shape differ in nothing but the contents of these arrays. Empty: not worth to be
  // told apart, because such a step hardly comes again (some sequence has several rows, or rows are
  // shadowed).
  std::string shape() const;
  // Some row is routed or linear, so that odds and decisions are needed.
  bool needs_controller() const { return needs_controller_; }

  // Host copies of the plan's rows, for counting what was read.
  std::span<const std::int32_t> positions() const { return OfPlan(position_); }
  std::span<const std::int32_t> far_ends() const { return OfPlan(far_end_); }
  std::span<const std::int32_t> linear_ends() const { return OfPlan(linear_end_); }
  std::span<const std::int32_t> sequences() const { return OfPlan(sequence_); }
  std::span<const std::int32_t> shadow_rows() const { return shadow_rows_; }
  // Of the plan's sequences: the positions [first, second) of this step's rows, the blocks up to
  // there.
  std::pair<std::int32_t, std::int32_t> PositionsOf(int sequence) const;
  std::span<const std::int32_t> BlocksOf(int sequence) const;
  std::span<const std::uint64_t> requests() const { return request_; }
  std::span<const std::uint8_t> eligible() const { return eligible_; }
  std::span<const std::uint8_t> routed() const { return OfPlan(routed_); }  // 1: the controller's

 private:
  StepBatch(const StepBatchLimits& limits, Device& device) : limits_(limits), device_(&device) {}
  absl::Status Check(const StepPlan& plan) const;
  absl::Status CheckStates(const StepPlan& plan) const;

  StepBatchLimits limits_;
  Device* device_;
  std::int32_t LinearEnd(std::int32_t position) const;
  template <typename T>
  std::span<const T> OfPlan(const std::vector<T>& rows) const {
    return std::span<const T>(rows).first(static_cast<std::size_t>(plan_rows_));
  }
  void Size(const StepPlan& plan);
  void FillRows(const StepPlan& plan);
  void PadRows();
  void PlaceHead(const StepPlan& plan);
  template <typename T>
  std::vector<T> Padded(const std::vector<T>& rows, const T& with) const;
  template <typename T>
  std::size_t Place(const std::vector<T>& values);
  void PlacePolicies(const std::vector<RoutePolicy>& policy);

  Buffer arrays_;
  std::vector<std::int32_t> staging_;  // its words, before they are copied
  std::vector<std::int32_t> shadow_rows_;
  std::vector<std::uint64_t> request_;
  std::vector<std::uint8_t> route_, routed_, eligible_;
  std::vector<float> cost_weight_, eta_;
  std::vector<std::int32_t> position_, sequence_, near_begin_, far_end_, row_begin_, table_begin_;
  std::vector<std::int32_t> linear_end_, blocks_, state_slot_, state_end_;
  AttentionRows rows_;
  std::size_t offset_tokens_ = 0, offset_head_ = 0;
  std::size_t offset_route_ = 0, offset_weight_ = 0, offset_eta_ = 0;
  std::int64_t plan_rows_ = 0, padded_rows_ = 0;
  int plan_sequences_ = 0;
  int logit_count_ = 0, best_count_ = 0, padded_logits_ = 0, padded_best_ = 0;
  bool needs_controller_ = false;
};

}  // namespace metattn
