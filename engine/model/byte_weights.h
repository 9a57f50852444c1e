// Rows of bf16 weights as blocks of Q8_0, where that loses nothing: half the bytes for the engine
// to read. Calibration rounds what it multiplies the layer's input with to such weights.
//
// Pure; thread safe. No errors. Cost: two passes over the values.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace metattn {

// bf16: rows of bf16 values, each a multiple of 32 of them. Nothing unless every 32 values are
// integers in -127..127 times a power of two in 2^-14..2^15 (a normal f16). A negative zero becomes
// zero.
std::optional<std::vector<std::byte>> ByteWeights(std::span<const std::byte> bf16);

}  // namespace metattn
