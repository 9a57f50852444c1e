// Rows of a packed matrix, decoded. A lane of a panel is the row wanted, so whole panels pass
// through registers and one lane is kept: about a microsecond per token of 576 values.
#include <cstring>

#include "kernels/cpu/block_format.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr std::int64_t kChunk = 16;  // tokens

template <typename R>
void DecodeLane(const std::byte* panel, std::int64_t cols, int lane, float* out) {
  alignas(64) float lanes[8][kLanes];
  for (std::int64_t c = 0; c < cols; c += kGroup) {
    const int columns = static_cast<int>(Smaller<std::int64_t>(kGroup, cols - c));
    const F32v scale = R::Scale(panel), offset = R::Offset(panel);
    for (int octet = 0; octet * 8 < columns; ++octet) {
      const int count = Smaller(8, columns - octet * 8);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        if (i < count) Store(lanes[i], Value<R>(scale, offset, panel, octet, i));
      }
      for (int i = 0; i < count; ++i) out[c + octet * 8 + i] = lanes[i][lane];
    }
    panel += R::Bytes(columns);
  }
}

void Row(const PackedMatrix& table, std::int64_t row, float* out) {
  for (const Segment& s : table.segments()) {
    const std::int64_t local = row - s.first_row;
    if (local < 0 || local >= s.rows) continue;
    const std::byte* panel = s.data + local / kLanes * s.panel_bytes;
    const int lane = static_cast<int>(local % kLanes);
    WithReader(s.dtype, [&]<typename R>() { DecodeLane<R>(panel, table.cols(), lane, out); });
  }
}

}  // namespace

void Embed(const PackedMatrix& table, const EmbedArgs& args, OpContext& context) {
  const auto* ids = args.ids.As<std::int32_t>();
  auto* out = args.out.As<float>();
  const std::int64_t cols = table.cols();
  context.pool.ParallelFor(args.tokens, kChunk, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t row = ids[t] - args.first_id;
      if (row >= 0 && row < table.rows()) {
        Row(table, row, out + t * cols);
      } else {
        std::memset(out + t * cols, 0, static_cast<std::size_t>(cols) * sizeof(float));
      }
    }
  });
}

}  // namespace metattn::cpu::METATTN_ISA
