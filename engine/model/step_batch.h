// The device-side form of a StepPlan: the integer arrays that kernels read, and what follows from
// them by arithmetic.
//
// Owns its device arrays, sized once for the largest step. Load copies one plan in; rows() is valid
// until the next Load. One caller. Cost: one host-to-device copy of a few bytes per row and block.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/step_plan.h"
#include "kernels/kernels.h"

namespace metattn {

struct StepBatchLimits {
  int max_rows = 0;
  int max_sequences = 0;
  int max_logit_rows = 0;
  int max_context = 0;      // positions
  std::int64_t blocks = 0;  // ids are 0 .. blocks - 1
  std::int64_t vocab = 0;
  int window = 256;
  int sinks = 4;
};

// Tokens read by attention, summed over rows, for one KV head (the counts are the same for every
// head).
struct ReadCounts {
  std::int64_t near_tokens = 0;
  std::int64_t dense_tokens = 0;
  std::int64_t eligible_rows = 0;
};

// First position of the near window of position t: whole blocks, window w (design section 3: a(t)).
std::int32_t NearBegin(std::int32_t position, int window);

class StepBatch {
 public:
  static absl::StatusOr<std::unique_ptr<StepBatch>> Create(const StepBatchLimits& limits,
                                                           Device& device);

  // INVALID_ARGUMENT when the plan exceeds the limits (names which); nothing is changed then.
  [[nodiscard]] absl::Status Load(const StepPlan& plan, Stream& stream);

  const AttentionRows& rows() const { return rows_; }
  View token_ids() const { return View{&ints_, offset_tokens_}; }   // [T] i32
  View logit_rows() const { return View{&ints_, offset_logits_}; }  // [n] i32
  View route() const { return View{&routes_}; }                     // [T] u8
  int logit_count() const { return logit_count_; }
  const ReadCounts& counts() const { return counts_; }

 private:
  StepBatch(const StepBatchLimits& limits, Device& device) : limits_(limits), device_(&device) {}
  absl::Status Check(const StepPlan& plan) const;

  StepBatchLimits limits_;
  Device* device_;
  Buffer ints_, routes_;
  std::vector<std::int32_t> staging_;
  AttentionRows rows_;
  std::size_t offset_tokens_ = 0, offset_logits_ = 0;
  int logit_count_ = 0;
  ReadCounts counts_;
};

}  // namespace metattn
