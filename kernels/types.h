// Element types, quantised block layouts and the few constants every folder agrees on.
// Plain data and constexpr functions only; thread safe; no errors.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace metattn {

// Tokens of one block, and of one page (design section 2). Divides kSpanTokens.
inline constexpr int kBlockTokens = 64;
// Far spans lie on this fixed grid, so that results do not depend on how far work is split.
inline constexpr int kSpanTokens = 256;
static_assert(kSpanTokens % kBlockTokens == 0);

// Attention mechanisms, in the order of every table and message (design section 2).
enum class Mechanism : std::uint8_t { kFull = 0, kLinear = 1, kLocal = 2 };
inline constexpr int kMechanisms = 3;

enum class DType : std::uint8_t { kF32 = 0, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kI32 };

// Values per block and bytes per block; unquantised types have blocks of one value.
// Quantised blocks are GGUF's: q8_0 {f16 d; i8 q[32]}, q4_0 {f16 d; u8 q[16]}, q4_1 {f16 d; f16 m;
// u8 q[16]}; of a q4 byte j the low nibble is value j, the high nibble value j + 16.
struct DTypeInfo {
  std::string_view name;
  int block_values;
  int block_bytes;
};

constexpr DTypeInfo Info(DType t) {
  switch (t) {
    case DType::kF32:
      return {"f32", 1, 4};
    case DType::kF16:
      return {"f16", 1, 2};
    case DType::kBF16:
      return {"bf16", 1, 2};
    case DType::kQ8_0:
      return {"q8_0", 32, 34};
    case DType::kQ4_0:
      return {"q4_0", 32, 18};
    case DType::kQ4_1:
      return {"q4_1", 32, 20};
    case DType::kI32:
      return {"i32", 1, 4};
  }
  return {"?", 1, 0};
}

// Bytes of `values` consecutive values; `values` must be a multiple of the type's block.
constexpr std::int64_t BytesFor(DType t, std::int64_t values) {
  return values / Info(t).block_values * Info(t).block_bytes;
}

constexpr float Bf16ToF32(std::uint16_t v) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(v) << 16);
}

// Round to nearest even; NaN stays NaN.
constexpr std::uint16_t F32ToBf16(float f) {
  const auto u = std::bit_cast<std::uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

constexpr float F16ToF32(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1fu;
  const std::uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

}  // namespace metattn
