// y = x W^T by bf16 tiles (tile_block.h): bf16 times bf16, sums in f32.
//
// B tiles are 32 columns of 16 rows of W, the columns in pairs. x is rounded to bf16 into A tiles
// once per op, each weight once when it is decoded, both to nearest even.
// - AMX, up to 64 rows of x, where decoding costs more than multiplying: threads take panels one by
//   one and multiply every B tile as soon as it is decoded (16 rows: 1.2 times faster than below).
// - Else: threads take pairs of panels, decode both whole into the worker's scratch (96 KB for 1536
//   columns, stays in L2), then pass over all rows of x in blocks of 32.
#include "kernels/cpu/linear.h"

#if defined(__AVX512BF16__)

#include <cstring>

#include "kernels/cpu/block_format.h"
#include "kernels/cpu/tile_block.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr std::int64_t kTile = 1024;  // bytes of a tile
constexpr std::int64_t kPair = 2;     // panels a thread takes
#if defined(__AMX_BF16__)
constexpr int kFewTiles = 4;  // of rows of x: up to here decoding is the larger part
#endif
static_assert(kGroup == 2 * kTileSide);

// Lanes of columns c (low) and c + 1 (high) as one row of B.
METATTN_INLINE void StorePairs(F32v low, F32v high, std::byte* to) {
  alignas(64) static constexpr std::uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low);
  _mm512_store_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both));
}

// One group of a panel to a B tile; columns past `columns` are zero.
template <typename R>
METATTN_INLINE void DecodeGroup(const std::byte* group, int columns, std::byte* to) {
  for (int line = 0; line < R::Bytes(kGroup); line += 64) {
    _mm_prefetch(group + kAheadBytes + line, _MM_HINT_T0);
  }
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
}

template <typename R>
void DecodePanel(const std::byte* group, std::int64_t cols, std::byte* to) {
  for (std::int64_t c = 0; c < cols; c += kGroup, to += kTile) {
    const int columns = static_cast<int>(Smaller<std::int64_t>(kGroup, cols - c));
    DecodeGroup<R>(group, columns, to);
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
    for (std::int64_t row = begin * kTileSide; row < end * kTileSide; ++row) {
      std::byte* to = all + row / kTileSide * row_tile_bytes + row % kTileSide * 64;
      if (row < job.tokens) {
        RoundRow(job.x + row * shape.cols, shape.cols, to);
      } else {
        for (std::int64_t t = 0; t < shape.column_tiles; ++t) std::memset(to + t * kTile, 0, 64);
      }
    }
  });
  return all;
}

using Tile = float[kTileSide][kTileSide];  // a C tile in memory

// Rows of W that a panel holds.
struct Panel {
  const Segment* segment = nullptr;
  const std::byte* data = nullptr;
  std::int64_t column = 0;  // first row of W: column of out
  int lanes = 0;            // rows; 0: no panel
};

Panel FindPanel(const PackedMatrix& weight, std::int64_t panel) {
  for (const Segment& s : weight.segments()) {
    const std::int64_t local = panel - s.first_panel;
    if (local < 0 || local >= s.panels) continue;
    const std::int64_t left = s.rows - local * kLanes;
    return {&s, s.data + local * s.panel_bytes, s.first_row + local * kLanes,
            static_cast<int>(Smaller<std::int64_t>(kLanes, left))};
  }
  return {};
}

// Adds the bias and writes the rows of out that the tile holds, from `row` on.
void StoreTile(const LinearJob& job, const Panel& panel, std::int64_t row, const Tile& c) {
  if (panel.lanes == 0) return;
  const std::int64_t n = job.weight.rows();
  const int rows = static_cast<int>(Smaller<std::int64_t>(kTileSide, job.tokens - row));
  const F32v bias = job.bias == nullptr ? Zero() : LoadN(job.bias + panel.column, panel.lanes);
  float* out = job.out + row * n + panel.column;
  for (int m = 0; m < rows; ++m) StoreN(out + m * n, Add(Load(c[m]), bias), panel.lanes);
}

// Products of one or two row tiles (kRowTiles) with a pair of decoded panels: c[row tile][panel].
template <int kRowTiles>
METATTN_INLINE void MultiplyPair(const std::byte* a, const std::byte* b, const Shape& shape,
                                 std::int64_t rows, Tile (&c)[2][kPair]) {
  const std::int64_t next = shape.column_tiles * kTile;  // from one row tile or panel to the next
  const auto step = [&](std::int64_t k) -> TileStep { return {a + k * kTile, b + k * kTile}; };
  constexpr std::int64_t kFloats = kTileSide * kTileSide;
  MultiplyTiles<kRowTiles, kPair, false>({64, next, 64, next}, shape.column_tiles, step,
                                         static_cast<int>(Smaller<std::int64_t>(rows, kLanes * 2)),
                                         {c[0][0][0], kTileSide, kFloats, kPair * kFloats});
}

// Many rows: decodes both panels whole, then passes over all rows.
void ManyRows(const LinearJob& job, const Shape& shape, const std::byte* a,
              const Panel (&panels)[kPair], std::byte* b) {
  const std::int64_t next = shape.column_tiles * kTile;
  for (int p = 0; p < kPair; ++p) {
    if (panels[p].lanes == 0) continue;
    WithReader(panels[p].segment->dtype,
               [&]<typename R>() { DecodePanel<R>(panels[p].data, shape.cols, b + p * next); });
  }
  alignas(64) Tile c[2][kPair];
  for (std::int64_t tile = 0; tile < shape.row_tiles; tile += 2) {
    const bool two = tile + 1 < shape.row_tiles;
    const std::int64_t rows = job.tokens - tile * kTileSide;
    if (two) {
      MultiplyPair<2>(a + tile * next, b, shape, rows, c);
    } else {
      MultiplyPair<1>(a + tile * next, b, shape, rows, c);
    }
    for (int i = 0; i < (two ? 2 : 1); ++i) {
      for (int p = 0; p < kPair; ++p) StoreTile(job, panels[p], (tile + i) * kTileSide, c[i][p]);
    }
  }
}

#if defined(__AMX_BF16__)

// Few rows (up to kFewTiles tiles of them): each B tile is multiplied as soon as it is decoded, so
// that the tile unit works beside the decoding.
template <typename R, int kRowTiles>
METATTN_INLINE void MultiplyFew(const std::byte* group, const Shape& shape, const std::byte* a,
                                Tile* c) {
  const std::int64_t next = shape.column_tiles * kTile;
  alignas(64) std::byte b[2][kTile];
  _tile_zero(0);
  if constexpr (kRowTiles > 1) _tile_zero(1);
  if constexpr (kRowTiles > 2) _tile_zero(2);
  if constexpr (kRowTiles > 3) _tile_zero(3);
  for (std::int64_t k = 0; k < shape.column_tiles; ++k, a += kTile) {
    const int columns = static_cast<int>(Smaller<std::int64_t>(kGroup, shape.cols - k * kGroup));
    DecodeGroup<R>(group, columns, b[k % 2]);
    group += R::Bytes(columns);
    _tile_loadd(7, b[k % 2], 64);
    _tile_loadd(4, a, 64);
    _tile_dpbf16ps(0, 4, 7);
    if constexpr (kRowTiles > 1) {
      _tile_loadd(5, a + next, 64);
      _tile_dpbf16ps(1, 5, 7);
    }
    if constexpr (kRowTiles > 2) {
      _tile_loadd(6, a + 2 * next, 64);
      _tile_dpbf16ps(2, 6, 7);
    }
    if constexpr (kRowTiles > 3) {
      _tile_loadd(4, a + 3 * next, 64);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, c[0], 64);
  if constexpr (kRowTiles > 1) _tile_stored(1, c[1], 64);
  if constexpr (kRowTiles > 2) _tile_stored(2, c[2], 64);
  if constexpr (kRowTiles > 3) _tile_stored(3, c[3], 64);
}

void FewRows(const LinearJob& job, const Shape& shape, const std::byte* a, const Panel& panel) {
  alignas(64) Tile c[kFewTiles];
  WithReader(panel.segment->dtype, [&]<typename R>() {
    switch (shape.row_tiles) {
      case 1:
        return MultiplyFew<R, 1>(panel.data, shape, a, c);
      case 2:
        return MultiplyFew<R, 2>(panel.data, shape, a, c);
      case 3:
        return MultiplyFew<R, 3>(panel.data, shape, a, c);
      default:
        return MultiplyFew<R, 4>(panel.data, shape, a, c);
    }
  });
  for (int i = 0; i < shape.row_tiles; ++i) StoreTile(job, panel, i * kTileSide, c[i]);
}

#endif

}  // namespace

void LinearTiles(const LinearJob& job, OpContext& context) {
  Shape shape;
  shape.cols = job.weight.cols();
  shape.column_tiles = (shape.cols + kGroup - 1) / kGroup;
  shape.row_tiles = (job.tokens + kTileSide - 1) / kTileSide;
  const std::byte* a = RoundActivations(job, shape, context);
  const auto pair_bytes = static_cast<std::size_t>(kPair * shape.column_tiles * kTile);
  const auto body = [&](std::int64_t begin, std::int64_t end, int worker) {
    const TileScope tiles(true);
#if defined(__AMX_BF16__)
    if (shape.row_tiles <= kFewTiles) {
      for (std::int64_t p = begin; p < end; ++p) FewRows(job, shape, a, FindPanel(job.weight, p));
      return;
    }
#endif
    const Panel panels[kPair] = {
        FindPanel(job.weight, begin),
        begin + 1 < end ? FindPanel(job.weight, begin + 1) : Panel{},
    };
    ManyRows(job, shape, a, panels, context.scratch.Worker(worker, pair_bytes));
  };
  context.pool.ParallelFor(job.weight.panels(), kPair, body);
}

}  // namespace metattn::cpu::METATTN_ISA

#endif  // __AVX512BF16__
