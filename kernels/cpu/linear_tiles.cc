// y = x W^T on AMX tiles: bf16 times bf16, sums in f32. Level amx only.
//
// Tiles: A is 16 rows of x times 32 columns; B is 32 columns times 16 rows of W with the columns in
// pairs (the layout of tdpbf16ps: row i of B holds, per row of W, columns 2i and 2i + 1); C is 16 x
// 16 f32. Threads take pairs of panels: decode both to B tiles in the worker's scratch (bf16, each
// weight rounded once, to nearest even), then pass over all rows of x in blocks of 32 with four C
// tiles, two A and two B tiles in registers: one tile load per product. x is rounded to bf16 into A
// tiles once per op. A pair of panels of 1536 columns is 96 KB and stays in L2.
#include "kernels/cpu/linear.h"

#if defined(__AMX_BF16__)

#include <cstring>

#include "kernels/cpu/block_format.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kSide = 16;              // rows of a tile
constexpr std::int64_t kTile = 1024;   // bytes of a tile
constexpr int kBlockRows = 2 * kSide;  // rows of x per pass
constexpr std::int64_t kPair = 2;      // panels a thread takes
static_assert(kSide == kLanes && kGroup == 2 * kSide);

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

void ConfigureTiles() {
  const TileConfig config;
  // GCC 12 believes that the instruction reads 8 bytes and would drop the other stores.
  __asm__ volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

// Lanes of columns c (low) and c + 1 (high) as one row of B.
METATTN_INLINE void StorePairs(F32v low, F32v high, std::byte* to) {
  alignas(64) static constexpr std::uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both));
}

// One panel to B tiles; columns past the last are zero.
template <typename R>
void DecodePanel(const std::byte* group, std::int64_t cols, std::byte* to) {
  for (std::int64_t c = 0; c < cols; c += kGroup, to += kTile) {
    const int columns = static_cast<int>(Smaller<std::int64_t>(kGroup, cols - c));
    const F32v scale = R::Scale(group), offset = R::Offset(group);
    for (int octet = 0; octet < 4; ++octet) {
#pragma GCC unroll 4
      for (int i = 0; i < 8; i += 2) {
        F32v low = Zero(), high = Zero();
        const int left = columns - octet * 8 - i;
        if (R::kScaled || left > 0) low = Value<R>(scale, offset, group, octet, i);
        if (R::kScaled || left > 1) high = Value<R>(scale, offset, group, octet, i + 1);
        StorePairs(low, high, to + (octet * 4 + i / 2) * 64);
      }
    }
    group += R::Bytes(columns);
  }
}

// x rounded to bf16 in A tiles [row tile][column tile][16][32]; the rest of edge tiles is zero.
void RoundRow(const float* x, std::int64_t cols, std::byte* to) {
  for (std::int64_t c = 0; c < cols; c += kGroup, to += kTile) {
    const int columns = static_cast<int>(Smaller<std::int64_t>(kGroup, cols - c));
    const F32v low = LoadN(x + c, Smaller(columns, kLanes));
    const F32v high = columns > kLanes ? LoadN(x + c + kLanes, columns - kLanes) : Zero();
    _mm512_store_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

struct Shape {
  std::int64_t cols = 0, column_tiles = 0, row_tiles = 0;
};

const std::byte* RoundActivations(const LinearJob& job, const Shape& shape, OpContext& context) {
  const std::int64_t row_tile_bytes = shape.column_tiles * kTile;
  std::byte* all =
      context.scratch.Shared(static_cast<std::size_t>(shape.row_tiles * row_tile_bytes));
  context.pool.ParallelFor(shape.row_tiles, 1, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t row = begin * kSide; row < end * kSide; ++row) {
      std::byte* to = all + row / kSide * row_tile_bytes + row % kSide * 64;
      if (row < job.tokens) {
        RoundRow(job.x + row * shape.cols, shape.cols, to);
      } else {
        for (std::int64_t t = 0; t < shape.column_tiles; ++t) std::memset(to + t * kTile, 0, 64);
      }
    }
  });
  return all;
}

// Where a pair of panels goes: up to 32 rows of W from `column` of out on.
struct Target {
  std::int64_t column[kPair];  // first row of W of each panel
  int lanes[kPair];            // 0: no such panel
  std::byte* b;                // B tiles of both panels
};

// C tiles, as they come from the tile registers: [2 row tiles][2 panels][16][16].
using Block = float[2][kPair][kSide][kSide];

// Products of one or two row tiles (kRowTiles) with the pair of panels.
template <int kRowTiles>
METATTN_INLINE void MultiplyTiles(const std::byte* a, const std::byte* b, std::int64_t steps,
                                  Block& c) {
  const std::int64_t next = steps * kTile;  // from one row tile or panel to the next
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kRowTiles == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t k = 0; k < steps; ++k, a += kTile, b += kTile) {
    _tile_loadd(4, a, 64);
    _tile_loadd(6, b, 64);
    _tile_loadd(7, b + next, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, a + next, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c[0][0], 64);
  _tile_stored(1, c[0][1], 64);
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, c[1][0], 64);
    _tile_stored(3, c[1][1], 64);
  }
}

void StoreBlock(const LinearJob& job, const Target& target, std::int64_t row, const Block& c) {
  const std::int64_t n = job.weight.rows();
  const int rows = static_cast<int>(Smaller<std::int64_t>(kBlockRows, job.tokens - row));
  for (int p = 0; p < kPair; ++p) {
    const int lanes = target.lanes[p];
    if (lanes == 0) continue;
    const F32v bias = job.bias == nullptr ? Zero() : LoadN(job.bias + target.column[p], lanes);
    float* out = job.out + row * n + target.column[p];
    for (int m = 0; m < rows; ++m) {
      StoreN(out + m * n, Add(Load(c[m / kSide][p][m % kSide]), bias), lanes);
    }
  }
}

void MultiplyPair(const LinearJob& job, const Shape& shape, const std::byte* a,
                  const Target& target) {
  const std::int64_t row_tile_bytes = shape.column_tiles * kTile;
  alignas(64) Block c;
  for (std::int64_t tile = 0; tile < shape.row_tiles; tile += 2) {
    const std::byte* from = a + tile * row_tile_bytes;
    if (tile + 1 < shape.row_tiles) {
      MultiplyTiles<2>(from, target.b, shape.column_tiles, c);
    } else {
      MultiplyTiles<1>(from, target.b, shape.column_tiles, c);
    }
    StoreBlock(job, target, tile * kSide, c);
  }
}

// Decodes panel `panel` as the p-th of the pair.
void DecodeInto(const LinearJob& job, const Shape& shape, std::int64_t panel, int p,
                Target& target) {
  for (const Segment& s : job.weight.segments()) {
    const std::int64_t local = panel - s.first_panel;
    if (local < 0 || local >= s.panels) continue;
    target.column[p] = s.first_row + local * kLanes;
    target.lanes[p] = static_cast<int>(Smaller<std::int64_t>(kLanes, s.rows - local * kLanes));
    const std::byte* data = s.data + local * s.panel_bytes;
    std::byte* to = target.b + p * shape.column_tiles * kTile;
    WithReader(s.dtype, [&]<typename R>() { DecodePanel<R>(data, shape.cols, to); });
  }
}

}  // namespace

void LinearTiles(const LinearJob& job, OpContext& context) {
  Shape shape;
  shape.cols = job.weight.cols();
  shape.column_tiles = (shape.cols + kGroup - 1) / kGroup;
  shape.row_tiles = (job.tokens + kSide - 1) / kSide;
  const std::byte* a = RoundActivations(job, shape, context);
  const auto pair_bytes = static_cast<std::size_t>(kPair * shape.column_tiles * kTile);
  const auto body = [&](std::int64_t begin, std::int64_t end, int worker) {
    Target target{{0, 0}, {0, 0}, context.scratch.Worker(worker, pair_bytes)};
    ConfigureTiles();
    for (std::int64_t panel = begin; panel < end; ++panel) {
      DecodeInto(job, shape, panel, static_cast<int>(panel - begin), target);
    }
    MultiplyPair(job, shape, a, target);
    _tile_release();
  };
  context.pool.ParallelFor(job.weight.panels(), kPair, body);
}

}  // namespace metattn::cpu::METATTN_ISA

#endif  // __AMX_BF16__
