// Half of 32 neighbouring weights of a row, a thread's share of a block: values [8 half, 8 half +
// 8) and the 8 that lie 16 further, which are the two nibbles of the same bytes in the 4-bit
// formats. 16 values cost one scale and a few wide loads; they wait as they are in the file, so
// that a thread can have the next block under way. Device code.
#pragma once

#include <cuda_runtime_api.h>

#include <type_traits>

#include "kernels/cuda/decode.h"
#include "kernels/cuda/gpu.h"
#include "kernels/cuda/params.h"

namespace metattn::cuda {

// Result `index` of a product.
GPU_INLINE void StoreResult(const LinearParams& p, std::int64_t index, float value) {
  if (p.rounded_out != nullptr) {
    p.rounded_out[index] = __float2bfloat16(value);
  } else {
    p.out[index] = value;
  }
}

template <int kType>
class WeightBlock {
 public:
  // Columns [column, column + 32) of row n; zeros past the ends. aligned: rows of f32, f16 and bf16
  // begin at multiples of 16 bytes.
  GPU_INLINE void Load(const WeightPart& part, std::int64_t n, std::int64_t column, int half,
                       bool aligned) {
    const unsigned char* row = part.data + n * part.row_bytes;
    const bool valid = n < part.rows;
    if constexpr (kQuantised) {
      LoadQuantised(valid, row + column / 32 * kBlockBytes, half);
    } else {
      LoadPlain(row, valid ? part.cols - column : 0, 8 * half, aligned, column);
    }
  }

  // values[i]: of column 8 half + i for i < 8, of 8 half + 8 + i from 8 on.
  GPU_INLINE void Decode(float (&values)[16]) const {
#pragma unroll
    for (int i = 0; i < 16; ++i) values[i] = Value(i);
  }

 private:
  static constexpr bool kQuantised = kType >= kQ8_0;
  static constexpr int kBlockBytes = kType == kQ8_0 ? 34 : kType == kQ4_0 ? 18 : 20;
  static constexpr int kHeader = kType == kQ4_1 ? 4 : 2;  // scale, and minimum
  // Words of 8 values (bytes of 8 pairs of nibbles), and how many times 8.
  static constexpr int kWords = kType == kF32 ? 8 : kQuantised ? 2 : 4;
  static constexpr int kTimes = kType == kQ4_0 || kType == kQ4_1 ? 1 : 2;

  GPU_INLINE void LoadQuantised(bool valid, const unsigned char* block, int half) {
    scale_ = valid ? LoadHalf(block) : 0.0F;
    if constexpr (kType == kQ4_1) minimum_ = valid ? LoadHalf(block + 2) : 0.0F;
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      const unsigned char* bytes = block + kHeader + 8 * half + 16 * i;
      for (int word = 0; word < 2; ++word) {
        raw_[i][word] = valid ? LoadWord(bytes + 4 * word) : 0U;
      }
    }
  }

  // left: columns from `column` on.
  GPU_INLINE void LoadPlain(const unsigned char* row, std::int64_t left, int offset, bool aligned,
                            std::int64_t column) {
    constexpr int kBytes = kType == kF32 ? 4 : 2;
#pragma unroll
    for (int i = 0; i < kTimes; ++i) {
      const int first = offset + 16 * i;
      const unsigned char* bytes = row + (column + first) * kBytes;
      if (aligned) {  // the columns of 16 bytes are all there or none
#pragma unroll
        for (int word = 0; word < kWords; word += 4) {
          uint4 four = {0, 0, 0, 0};
          if (first + word < left) four = *reinterpret_cast<const uint4*>(bytes + 4 * word);
          raw_[i][word] = four.x, raw_[i][word + 1] = four.y;
          raw_[i][word + 2] = four.z, raw_[i][word + 3] = four.w;
        }
        continue;
      }
#pragma unroll
      for (int word = 0; word < kWords; ++word) raw_[i][word] = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        if (first + j >= left) continue;
        if constexpr (kBytes == 4) {
          memcpy(&raw_[i][j], bytes + 4 * j, 4);
        } else {
          raw_[i][j / 2] |= std::uint32_t{LoadPair(bytes + 2 * j)} << (j % 2 * 16);
        }
      }
    }
  }

  static GPU_INLINE std::uint16_t LoadPair(const unsigned char* p) {
    std::uint16_t pair;
    memcpy(&pair, p, sizeof pair);
    return pair;
  }

  // Blocks of q4_1 are aligned to 4 bytes, the others to 2.
  static GPU_INLINE std::uint32_t LoadWord(const unsigned char* p) {
    if constexpr (kType == kQ4_1) {
      return *reinterpret_cast<const std::uint32_t*>(p);
    } else {
      return LoadPair(p) | std::uint32_t{LoadPair(p + 2)} << 16;
    }
  }

  GPU_INLINE float Value(int i) const {
    const int j = i % 8;
    if constexpr (kType == kF32) {
      float value;
      memcpy(&value, &raw_[i / 8][j], sizeof value);
      return value;
    } else if constexpr (!kQuantised) {
      const auto bits = static_cast<std::uint16_t>(raw_[i / 8][j / 2] >> (j % 2 * 16));
      if constexpr (kType == kF16) return LoadHalf(reinterpret_cast<const unsigned char*>(&bits));
      const std::uint32_t wide = std::uint32_t{bits} << 16;  // bf16 is the upper half of a float
      float value;
      memcpy(&value, &wide, sizeof value);
      return value;
    } else {
      const std::uint32_t byte = raw_[kTimes == 2 ? i / 8 : 0][j / 4] >> (j % 4 * 8) & 255U;
      if constexpr (kType == kQ8_0) {
        return scale_ * static_cast<float>(static_cast<signed char>(byte));
      } else {
        const auto q = static_cast<float>(i < 8 ? byte & 15U : byte >> 4);
        return kType == kQ4_0 ? scale_ * (q - 8.0F) : scale_ * q + minimum_;
      }
    }
  }

  std::uint32_t raw_[kTimes][kWords];
  float scale_, minimum_;
};

// body(constant) with the weight's type as a constant, which kernels are compiled for. Host code.
template <typename Body>
cudaError_t ForType(int type, const Body& body) {
  switch (type) {
    case kF32:
      return body(std::integral_constant<int, kF32>{});
    case kF16:
      return body(std::integral_constant<int, kF16>{});
    case kBF16:
      return body(std::integral_constant<int, kBF16>{});
    case kQ8_0:
      return body(std::integral_constant<int, kQ8_0>{});
    case kQ4_0:
      return body(std::integral_constant<int, kQ4_0>{});
    default:
      return body(std::integral_constant<int, kQ4_1>{});
  }
}

}  // namespace metattn::cuda
