#include "engine/shadow_rows.h"

#include <cstddef>

#include "engine/sampler.h"

namespace metattn {

void PickShadowRows(double rate, int most, StepPlan& plan) {
  std::int32_t row = 0;
  for (const StepSequence& s : plan.sequences) {
    const bool decodes = s.rows == 1 && s.start > 0;
    if (decodes && static_cast<int>(plan.shadow_rows.size()) < most &&
        plan.policy[static_cast<std::size_t>(row)].route == Route::kRouted &&
        CounterUniform(s.id, static_cast<std::uint64_t>(s.start)) < rate) {
      plan.shadow_rows.push_back(row);
    }
    row += s.rows;
  }
}

}  // namespace metattn
