// f32 values as the bytes of any DType, by plain rounding: what test models are made of.
// Independent of the kernels, so that their decoders can be checked against it. Pure; thread safe.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "kernels/types.h"

namespace metattn::test {

// Round to nearest even; too large becomes infinity.
std::uint16_t F32ToF16(float value);

// The values of one or more rows; the count must be a multiple of the type's block. A q4_0 or q8_0
// block is scaled by its largest magnitude, a q4_1 block by its range.
std::string EncodeValues(DType dtype, std::span<const float> values);

}  // namespace metattn::test
