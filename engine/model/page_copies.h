// Which blocks have copies of their pages on the ranks that help: host state that every rank keeps
// alike, because all of it follows from the steps' plans.
//
// A block is copied when all its tokens are stored, and its copy counts one step after the step
// that enqueued it, so that it has that long to arrive. A step that stores into a block makes its
// copy worthless. One caller. No errors. Cost: an integer per block of a step's sequences.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/model/step_batch.h"

namespace metattn {

class PageCopies {
 public:
  // most: blocks that are copied after one step, at most.
  PageCopies(std::int64_t blocks, int most)
      : state_(static_cast<std::size_t>(blocks)), most_(most) {}

  // Before a step.
  void BeginStep(const StepBatch& batch);
  // Whether copies of the first `tokens` tokens of a sequence of the step are there.
  bool Has(const StepBatch& batch, int sequence, std::int32_t tokens) const;
  // After a step: what was enqueued after the one before has arrived. -> what is to be enqueued
  // now.
  std::vector<std::int32_t> EndStep(const StepBatch& batch);

 private:
  enum class State : std::uint8_t { kNone, kUnderWay, kThere };

  std::vector<State> state_;
  std::vector<std::int32_t> under_way_;
  int most_;
};

}  // namespace metattn
