// Picks decode rows whose full attention output is computed beside the routed one (quality watch).
//
// Pure and deterministic. Only routed rows of sequences that decode are picked: a prompt's rows
// would be a full pass over it. Cost: O(sequences).
#pragma once

#include "engine/model/step_plan.h"

namespace metattn {

// Of one step: what a worker has room for (WorkerLimits.max_shadow_rows).
inline constexpr int kMaxShadowRows = 8;

// Adds to plan.shadow_rows each candidate with probability `rate` (a draw from sequence and
// position), `most` of them at most.
void PickShadowRows(double rate, int most, StepPlan& plan);

}  // namespace metattn
