// What communicator bodies share: range checks of Views, and the ordered sum of host memory.
// Internal to parallel/. Stateless, thread safe; errors name rank, operation and sizes. Cost:
// SumInRankOrder reads every part once and writes once; nothing is allocated.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/device.h"

namespace metattn {

// Bytes from the view's place to its buffer's end; an absent view has none.
inline std::size_t Room(View view) {
  return view && view.offset_bytes <= view.buffer->bytes()
             ? view.buffer->bytes() - view.offset_bytes
             : 0;
}

// `bytes` must lie inside the view's buffer.
inline absl::Status CheckBytes(View view, std::int64_t bytes, int rank, std::string_view what) {
  if (bytes >= 0 && static_cast<std::uint64_t>(bytes) <= Room(view)) return absl::OkStatus();
  return absl::InternalError(absl::StrFormat("rank %d: %s of %d bytes, but its view holds %d", rank,
                                             std::string(what), bytes, Room(view)));
}

// `count` f32 values must lie inside the view's buffer.
inline absl::Status CheckFloats(View view, std::int64_t count, int rank, std::string_view what) {
  const std::size_t room = Room(view);
  if (count >= 0 && static_cast<std::uint64_t>(count) <= room / sizeof(float)) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrFormat("rank %d: %s of %d values, but its view holds %d",
                                             rank, std::string(what), count, room / sizeof(float)));
}

inline absl::Status CheckRoot(int root, int rank, int size, std::string_view what) {
  if (root >= 0 && root < size) return absl::OkStatus();
  return absl::InternalError(
      absl::StrFormat("rank %d: %s from rank %d of %d", rank, std::string(what), root, size));
}

// Between places that are the same or do not overlap.
inline void CopyIfApart(void* to, const void* from, std::int64_t bytes) {
  if (bytes != 0 && to != from) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

// Sum of the counts; negative when one count is.
inline std::int64_t SumOfCounts(std::span<const std::int64_t> counts) {
  std::int64_t sum = 0;
  for (const std::int64_t c : counts) {
    if (c < 0) return -1;
    sum += c;
  }
  return sum;
}

// out[i] = (parts[0][i] + parts[1][i]) + parts[2][i] ...: the order of additions depends on
// nothing but the rank count. `out` may be one of the parts.
inline void SumInRankOrder(std::span<const float* const> parts, std::int64_t count, float* out) {
  constexpr std::int64_t kBlock = 512;  // 2 KiB: stays in L1 while the parts stream by
  float sum[kBlock];
  for (std::int64_t begin = 0; begin < count; begin += kBlock) {
    const std::int64_t n = std::min(kBlock, count - begin);
    std::copy_n(parts[0] + begin, n, sum);
    for (std::size_t r = 1; r < parts.size(); ++r) {
      const float* part = parts[r] + begin;
      for (std::int64_t i = 0; i < n; ++i) sum[i] += part[i];
    }
    std::copy_n(sum, n, out + begin);
  }
}

}  // namespace metattn
