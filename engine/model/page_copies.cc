#include "engine/model/page_copies.h"

#include <algorithm>
#include <utility>

#include "kernels/types.h"

namespace metattn {

void PageCopies::BeginStep(const StepBatch& batch) {
  for (int s = 0; s < batch.plan_sequences(); ++s) {
    const auto [begin, end] = batch.PositionsOf(s);
    const auto blocks = batch.BlocksOf(s);
    for (std::int32_t b = begin / kBlockTokens; b * kBlockTokens < end; ++b) {
      state_[static_cast<std::size_t>(blocks[b])] = State::kNone;
    }
  }
}

bool PageCopies::Has(const StepBatch& batch, int sequence, std::int32_t tokens) const {
  const auto blocks = batch.BlocksOf(sequence);
  const std::int32_t count = (tokens + kBlockTokens - 1) / kBlockTokens;
  return std::ranges::all_of(blocks.first(static_cast<std::size_t>(count)), [&](std::int32_t b) {
    return state_[static_cast<std::size_t>(b)] == State::kThere;
  });
}

std::vector<std::int32_t> PageCopies::EndStep(const StepBatch& batch) {
  for (const std::int32_t b : under_way_) {  // unless it was stored into meanwhile
    State& state = state_[static_cast<std::size_t>(b)];
    if (state == State::kUnderWay) state = State::kThere;
  }
  under_way_.clear();
  for (int s = 0; s < batch.plan_sequences(); ++s) {
    const auto blocks = batch.BlocksOf(s);
    const std::int32_t whole = batch.PositionsOf(s).second / kBlockTokens;
    for (const std::int32_t b : blocks.first(static_cast<std::size_t>(whole))) {
      State& state = state_[static_cast<std::size_t>(b)];
      if (state != State::kNone || std::ssize(under_way_) == most_) continue;
      state = State::kUnderWay;
      under_way_.push_back(b);
    }
  }
  return under_way_;
}

}  // namespace metattn
