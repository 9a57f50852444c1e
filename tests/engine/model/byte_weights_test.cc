// ByteWeights: what is exact in Q8_0 becomes it, value for value; all else is refused.
#include "engine/model/byte_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/types.h"

namespace metattn {
namespace {

std::vector<std::byte> Bf16(const std::vector<float>& values) {
  std::vector<std::byte> bytes;
  for (const float v : values) {
    const std::uint16_t bits = F32ToBf16(v);
    EXPECT_TRUE(std::isnan(v) || Bf16ToF32(bits) == v) << v << " is no bf16";
    const auto* p = reinterpret_cast<const std::byte*>(&bits);
    bytes.insert(bytes.end(), p, p + sizeof bits);
  }
  return bytes;
}

// By the definition of f16 and of Q8_0 (kernels/types.h).
std::vector<float> Decoded(const std::vector<std::byte>& blocks) {
  std::vector<float> values;
  for (std::size_t b = 0; b < blocks.size(); b += 34) {
    std::uint16_t d = 0;
    std::memcpy(&d, blocks.data() + b, 2);
    EXPECT_EQ(d & 0x83ff, 0) << "no power of two";
    for (int i = 0; i < 32; ++i) {
      const auto q = static_cast<std::int8_t>(blocks[b + 2 + static_cast<std::size_t>(i)]);
      values.push_back(std::ldexp(static_cast<float>(q), (d >> 10) - 15));
    }
  }
  return values;
}

TEST(ByteWeightsTest, IntegersTimesAPowerOfTwoAreKept) {
  std::mt19937 random(1);
  std::uniform_int_distribution<int> integer(-127, 127);
  for (int exponent = -14; exponent <= 15; ++exponent) {
    std::vector<float> values;
    for (int i = 0; i < 96; ++i) {
      values.push_back(std::ldexp(static_cast<float>(integer(random)), exponent + i / 32 % 2));
    }
    values[40] = -0.0f;
    if (exponent == 15) values.assign(96, std::ldexp(-127.0f, 15));
    const auto blocks = ByteWeights(Bf16(values));
    ASSERT_TRUE(blocks.has_value()) << exponent;
    EXPECT_EQ(blocks->size(), 3u * 34);
    EXPECT_EQ(Decoded(*blocks), values);
  }
}

TEST(ByteWeightsTest, CommonFactorsBeyondF16AndZerosAreNoObstacle) {
  std::vector<float> values(64, 0.0f);
  values[33] = std::ldexp(1.0f, 20);  // 32 times the largest scale
  const auto blocks = ByteWeights(Bf16(values));
  ASSERT_TRUE(blocks.has_value());
  EXPECT_EQ(Decoded(*blocks), values);
  EXPECT_EQ(ByteWeights({})->size(), 0u);
}

TEST(ByteWeightsTest, WhatWouldLoseAnythingIsRefused) {
  const std::vector<float> good(64, 3.0f);
  ASSERT_TRUE(ByteWeights(Bf16(good)).has_value());
  const float wrong[] = {
      128.0f + 1.0f,           // not beside 3: 129 steps of 1
      std::ldexp(1.0f, -6),    // 192 steps for 3
      std::ldexp(1.0f, -15),   // below f16's normal scales
      std::ldexp(1.0f, -133),  // a subnormal bf16
      std::ldexp(1.0f, 30),
      std::numeric_limits<float>::infinity(),
      -std::numeric_limits<float>::infinity(),
      std::numeric_limits<float>::quiet_NaN(),
  };
  for (const float w : wrong) {
    for (const std::size_t at : {0u, 31u, 63u}) {
      std::vector<float> values = good;
      values[at] = w;
      EXPECT_FALSE(ByteWeights(Bf16(values)).has_value()) << w << " at " << at;
    }
  }
  std::vector<float> small(32, std::ldexp(1.0f, -15));
  EXPECT_FALSE(ByteWeights(Bf16(small)).has_value());
  EXPECT_FALSE(ByteWeights(Bf16(std::vector<float>(48, 1.0f))).has_value()) << "half a block";
}

}  // namespace
}  // namespace metattn
