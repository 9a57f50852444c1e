// Philox-4x32-10, the counter-based generator of Salmon et al. ("Parallel random numbers: as easy
// as 1, 2, 3"): random words as a function of (counter, key), with no state to save or restore.
// Pure, thread safe, about 10 ns a call.
#pragma once

#include <array>
#include <cstdint>

namespace metattn {

std::array<std::uint32_t, 4> Philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

}  // namespace metattn
