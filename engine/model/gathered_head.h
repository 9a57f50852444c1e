// What ranks give of a step's last layer, each for its slice of the vocabulary, put together: pure.
//
// No errors: sizes follow from the step. Cost: each value is read once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernels.h"
#include "parallel/shard_planner.h"

namespace metattn {

// gathered: rank after rank [rows, V of the rank]. -> [rows, V].
std::vector<float> SideBySide(std::span<const Slice> slices, std::span<const float> gathered);

// gathered: rank after rank a Largest of every row, indices within the rank's slice. -> token ids:
// the lowest of equal ones, 0 where there is nothing above -inf.
std::vector<std::int32_t> BestOfRanks(std::span<const Slice> slices,
                                      std::span<const Largest> gathered);

}  // namespace metattn
