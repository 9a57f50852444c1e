// A well mixed function of 64 bits, for what is drawn by key instead of in an order.
// Values only; thread safe; no errors; a few instructions.
#pragma once

#include <cstdint>

namespace metattn {

// SplitMix64's finaliser: every bit of the input moves every bit of the output.
constexpr std::uint64_t MixBits(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace metattn
