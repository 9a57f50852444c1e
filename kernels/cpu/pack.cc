#include "kernels/cpu/pack.h"

#include <cstring>
#include <vector>

namespace metattn::cpu {
namespace {

// Unquantised: a transposition.
template <typename T>
void PackPlain(const PanelSource& s, std::byte* to) {
  for (std::int64_t c = 0; c < s.cols; ++c) {
    for (int r = 0; r < s.count; ++r) {
      std::memcpy(to + (c * s.panel_rows + r) * sizeof(T), s.rows[r] + c * sizeof(T), sizeof(T));
    }
  }
}

// The f16 scales at the head of a file's block: scale i of all rows, then scale i + 1.
void PackScales(const PanelSource& s, std::int64_t block_offset, int scales, std::byte* to) {
  for (int i = 0; i < scales; ++i) {
    for (int r = 0; r < s.count; ++r) {
      std::memcpy(to + (i * s.panel_rows + r) * 2, s.rows[r] + block_offset + i * 2, 2);
    }
  }
}

void PackBytes(const PanelSource& s, std::int64_t offset, std::byte* to) {
  for (int c = 0; c < kGroup; ++c) {
    for (int r = 0; r < s.count; ++r) to[c * s.panel_rows + r] = s.rows[r][offset + c];
  }
}

// The file keeps value j in the low and value j + 16 in the high nibble of byte j.
std::uint32_t Word(const std::byte* q, int w) {
  std::uint32_t word = 0;
  for (int i = 0; i < 8; ++i) {
    const int value = 8 * w + i;
    const auto byte = std::to_integer<std::uint32_t>(q[value % 16]);
    word |= (value < 16 ? byte & 15u : byte >> 4) << (4 * i);
  }
  return word;
}

void PackNibbles(const PanelSource& s, std::int64_t offset, std::byte* to) {
  for (int w = 0; w < 4; ++w) {
    for (int r = 0; r < s.count; ++r) {
      const std::uint32_t word = Word(s.rows[r] + offset, w);
      std::memcpy(to + (w * s.panel_rows + r) * 4, &word, 4);
    }
  }
}

}  // namespace

std::int64_t PanelBytes(DType dtype, std::int64_t cols, int panel_rows) {
  return BytesFor(dtype, cols) * panel_rows;
}

void PackPanel(const PanelSource& s, std::byte* to) {
  std::memset(to, 0, static_cast<std::size_t>(PanelBytes(s.dtype, s.cols, s.panel_rows)));
  if (s.dtype == DType::kF32) return PackPlain<std::uint32_t>(s, to);
  if (s.dtype == DType::kF16 || s.dtype == DType::kBF16) return PackPlain<std::uint16_t>(s, to);

  const int scales = s.dtype == DType::kQ4_1 ? 2 : 1;
  const int block_bytes = Info(s.dtype).block_bytes;
  for (std::int64_t b = 0; b < s.cols / kGroup; ++b, to += block_bytes * s.panel_rows) {
    const std::int64_t offset = b * block_bytes;
    std::byte* quants = to + scales * 2 * s.panel_rows;
    PackScales(s, offset, scales, to);
    if (s.dtype == DType::kQ8_0) {
      PackBytes(s, offset + 2, quants);
    } else {
      PackNibbles(s, offset + scales * 2, quants);
    }
  }
}

void PackQueryMap(std::span<std::uint16_t> w, int head_dim) {
  const std::vector<std::uint16_t> rows(w.begin(), w.end());
  const auto d = static_cast<std::size_t>(head_dim);
  for (std::size_t r = 0; r < d; ++r) {
    for (std::size_t i = 0; i < d; ++i) w[(i / 2 * d + r) * 2 + i % 2] = rows[r * d + i];
  }
}

}  // namespace metattn::cpu
