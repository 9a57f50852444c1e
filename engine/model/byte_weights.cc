#include "engine/model/byte_weights.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels/types.h"

namespace metattn {
namespace {

constexpr int kLeastExponent = -14, kLargestExponent = 15;  // of normal f16
constexpr std::size_t kValues = 32;                         // of a block of Q8_0

// The exponent of the last bit of a value that is not 0.
int LastBit(std::uint16_t bf16) {
  const int exponent = bf16 >> 7 & 0xff;
  const unsigned fraction = bf16 & 0x7fu;
  const unsigned digits = exponent == 0 ? fraction : fraction | 0x80u;
  return std::max(exponent, 1) - 127 - 7 + std::countr_zero(digits);
}

// Appends the scale and the integers of one block, or returns false.
bool AppendBlock(std::span<const std::uint16_t> values, std::vector<std::byte>& to) {
  int exponent = kLargestExponent;
  for (const std::uint16_t v : values) {
    if ((v & 0x7fffu) != 0) exponent = std::min(exponent, LastBit(v));
  }
  if (exponent < kLeastExponent) return false;
  const auto scale = static_cast<std::uint16_t>((exponent + 15) << 10);
  to.resize(to.size() + sizeof scale);
  std::memcpy(to.data() + to.size() - sizeof scale, &scale, sizeof scale);
  for (const std::uint16_t v : values) {
    const float q = std::ldexp(Bf16ToF32(v), -exponent);
    if (!(std::abs(q) <= 127.0f)) return false;  // infinite or NaN too
    to.push_back(static_cast<std::byte>(static_cast<std::int8_t>(q)));
  }
  return true;
}

}  // namespace

std::optional<std::vector<std::byte>> ByteWeights(std::span<const std::byte> bf16) {
  std::vector<std::byte> blocks;
  std::uint16_t values[kValues];
  if (bf16.size() % sizeof values != 0) return std::nullopt;
  blocks.reserve(static_cast<std::size_t>(
      BytesFor(DType::kQ8_0, static_cast<std::int64_t>(bf16.size() / sizeof(std::uint16_t)))));
  for (std::size_t i = 0; i < bf16.size(); i += sizeof values) {
    std::memcpy(values, bf16.data() + i, sizeof values);
    if (!AppendBlock(values, blocks)) return std::nullopt;
  }
  return blocks;
}

}  // namespace metattn
