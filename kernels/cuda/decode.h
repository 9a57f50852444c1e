// One value of a weight row in a file's format (kernels/types.h says how blocks lie). Device code,
// reads only the bytes of that value and its block's scales.
#pragma once

#include "kernels/cuda/gpu.h"

namespace metattn::cuda {

// Values of DType, which device code does not include.
enum WeightType : int { kF32 = 0, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1 };

GPU_INLINE float LoadHalf(const unsigned char* p) {
  __half value;
  memcpy(&value, p, sizeof value);
  return __half2float(value);
}

GPU_INLINE float DecodeNibble(const unsigned char* q, int j) {
  const int byte = q[j % 16];
  return static_cast<float>(j < 16 ? byte & 15 : byte >> 4);
}

GPU_INLINE float Decode(int type, const unsigned char* row, std::int64_t i) {
  const std::int64_t block = i / 32;
  const int j = static_cast<int>(i % 32);
  if (type == kF32) {
    float value;
    memcpy(&value, row + 4 * i, sizeof value);
    return value;
  }
  if (type == kF16) return LoadHalf(row + 2 * i);
  if (type == kBF16) {
    gpu::bf16 value;
    memcpy(&value, row + 2 * i, sizeof value);
    return __bfloat162float(value);
  }
  if (type == kQ8_0) {
    const unsigned char* b = row + block * 34;
    return LoadHalf(b) * static_cast<float>(static_cast<signed char>(b[2 + j]));
  }
  if (type == kQ4_0) {
    const unsigned char* b = row + block * 18;
    return LoadHalf(b) * (DecodeNibble(b + 2, j) - 8.0F);
  }
  const unsigned char* b = row + block * 20;
  return LoadHalf(b) * DecodeNibble(b + 4, j) + LoadHalf(b + 2);
}

}  // namespace metattn::cuda
