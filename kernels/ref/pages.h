// Pages of the reference backend: K as [kBlockTokens][d], then V as [kBlockTokens][d], bf16.
// Plain address arithmetic; borrows everything; not for other backends (a page is opaque).
#pragma once

#include <cstdint>

#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn::ref {

constexpr std::int64_t PageBytesFor(int head_dim) {
  return std::int64_t{2} * kBlockTokens * head_dim * 2;
}

// Where K and V of one position lie: [d] bf16 each.
struct Place {
  std::uint16_t* k;
  std::uint16_t* v;
};

// K and V of position `position` of the step's sequence `sequence` and KV head `head`.
inline Place Locate(const AttentionRows& rows, const PageTable& pages, int sequence, int head,
                    std::int64_t position) {
  const std::int64_t table = rows.table_begin.As<std::int32_t>()[sequence];
  const std::int64_t block = rows.blocks.As<std::int32_t>()[table + position / kBlockTokens];
  const std::int64_t page = block * pages.block_stride + head;
  const int d = pages.head_dim;
  auto* k = reinterpret_cast<std::uint16_t*>(pages.base.As<std::byte>() + page * PageBytesFor(d)) +
            position % kBlockTokens * d;
  return {k, k + kBlockTokens * d};
}

}  // namespace metattn::ref
