#include "tests/support/encode_values.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace metattn::test {
namespace {

template <typename T>
void Append(std::string& out, T value) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out.append(bytes, sizeof(T));
}

int Rounded(float value, int low, int high) {
  return std::clamp(static_cast<int>(std::lround(value)), low, high);
}

void AppendQ8(std::string& out, std::span<const float, 32> v) {
  float peak = 0;
  for (const float x : v) peak = std::max(peak, std::fabs(x));
  const float scale = peak / 127.0f;
  Append(out, F32ToF16(scale));
  for (const float x : v) {
    Append(out, static_cast<std::int8_t>(scale == 0 ? 0 : Rounded(x / scale, -127, 127)));
  }
}

// value = (nibble - zero) * scale for q4_0 (zero = 8), nibble * scale + least for q4_1.
void AppendNibbles(std::string& out, std::span<const float, 32> v, float scale, float origin) {
  const auto nibble = [&](float x) {
    return scale == 0 ? 0 : Rounded((x - origin) / scale, 0, 15);
  };
  for (std::size_t j = 0; j < 16; ++j) {
    Append(out, static_cast<std::uint8_t>(nibble(v[j]) | (nibble(v[j + 16]) << 4)));
  }
}

void AppendQ40(std::string& out, std::span<const float, 32> v) {
  float peak = 0;  // with its sign: it becomes nibble 0, that is -8
  for (const float x : v) peak = std::fabs(x) > std::fabs(peak) ? x : peak;
  const float scale = peak / -8.0f;
  Append(out, F32ToF16(scale));
  AppendNibbles(out, v, scale, -8.0f * scale);
}

void AppendQ41(std::string& out, std::span<const float, 32> v) {
  const auto [least, most] = std::minmax_element(v.begin(), v.end());
  const float scale = (*most - *least) / 15.0f;
  Append(out, F32ToF16(scale));
  Append(out, F32ToF16(*least));
  AppendNibbles(out, v, scale, *least);
}

}  // namespace

std::uint16_t F32ToF16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7e00u);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x1p-14f) {  // subnormal: a multiple of 2^-24
    const auto units = static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f));
    return static_cast<std::uint16_t>(sign | units);  // 1024 units are the smallest normal number
  }
  const std::uint32_t rest = bits & 0x7fffffffu;
  const std::uint32_t rounded = rest + 0xfffu + ((rest >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded >> 13) - (112u << 10)));
}

std::string EncodeValues(DType dtype, std::span<const float> values) {
  const auto block = static_cast<std::size_t>(Info(dtype).block_values);
  if (values.size() % block != 0) std::abort();  // our own bug
  std::string out;
  out.reserve(static_cast<std::size_t>(BytesFor(dtype, static_cast<std::int64_t>(values.size()))));
  for (std::size_t i = 0; i < values.size(); i += block) {
    switch (dtype) {
      case DType::kF32:
        Append(out, values[i]);
        break;
      case DType::kF16:
        Append(out, F32ToF16(values[i]));
        break;
      case DType::kBF16:
        Append(out, F32ToBf16(values[i]));
        break;
      case DType::kI32:
        Append(out, static_cast<std::int32_t>(values[i]));
        break;
      case DType::kQ8_0:
        AppendQ8(out, values.subspan(i).first<32>());
        break;
      case DType::kQ4_0:
        AppendQ40(out, values.subspan(i).first<32>());
        break;
      case DType::kQ4_1:
        AppendQ41(out, values.subspan(i).first<32>());
        break;
    }
  }
  return out;
}

}  // namespace metattn::test
