// y = x W^T with f32 activations, weights decoded in registers.
//
// Lanes are output rows (a panel), so a column's weights are one vector and x[t][column] a
// broadcast from memory. For each group g of 32 columns
//   s_t = sum over the group of quant * x_t     (columns in order, one fused multiply-add each)
//   y_t += d s_t + offset (sum of x_t over the group)
// which applies scales once per group. Every y_t goes through exactly these steps in this order
// whatever M, P, the chunk or the thread: batch independence by construction.
//
// Mapping: rows of x in blocks of M (kBlocks), a block's columns interleaved [cols][M] so that one
// pointer serves all M; P panels at once where M alone gives too few independent sums for the
// latency of FMA. Registers on AVX-512: 2 M P sums + 3. Threads take chunks of panels; inside a
// chunk a block of x stays in L1 while the chunk's panels (about kChunkBytes, L1/L2) pass by.
#include "kernels/cpu/block_format.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

// Widths of blocks of rows. A remainder goes into the narrowest that holds it, padded with zeros.
#if defined(__AVX512F__)
constexpr int kBlocks[] = {1, 2, 4, 8, 12};
#else
constexpr int kBlocks[] = {1, 2, 4, 6};
#endif
constexpr int kWidest = kBlocks[sizeof kBlocks / sizeof kBlocks[0] - 1];
constexpr std::int64_t kChunkBytes = 24 << 10;
constexpr std::int64_t kSerialPrepare = 16;  // rows of x from which threads share its preparation

// x as the kernels read it.
struct Activations {
  std::int64_t cols = 0, groups = 0;
  const float* x = nullptr;     // block b: [cols][width], at b * kWidest * cols
  const float* sums = nullptr;  // block b: [groups][width], at b * kWidest * groups
};

struct Tile {  // P panels times M rows
  const std::byte* panel;
  std::int64_t panel_bytes;
  std::int64_t cols;
  const float* x;
  const float* sums;
};

int WidthFor(std::int64_t rows) {
  for (int width : kBlocks) {
    if (rows <= width) return width;
  }
  return kWidest;
}

template <typename R, int M, int P>
METATTN_INLINE void Octet(const std::byte* const (&group)[P], int octet, int count, const float* x,
                          F32v (&sum)[P][M]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    if (i >= count) break;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const F32v q = R::Quant(group[p], octet, i);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) sum[p][m] = Fma(q, Set(x[i * M + m]), sum[p][m]);
    }
  }
}

template <typename R, int M, int P>
METATTN_INLINE void Group(const std::byte* const (&group)[P], int columns, const float* x,
                          const float* sums, F32v (&acc)[P][M]) {
  F32v sum[P][M];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sum[p][m] = Zero();
  }
  int octet = 0;
  for (; octet < columns / 8; ++octet) Octet<R, M, P>(group, octet, 8, x + octet * 8 * M, sum);
  if constexpr (!R::kScaled) {
    if (columns % 8 != 0) Octet<R, M, P>(group, octet, columns % 8, x + octet * 8 * M, sum);
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const F32v scale = R::Scale(group[p]), offset = R::Offset(group[p]);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      acc[p][m] = R::kScaled ? Fma(scale, sum[p][m], acc[p][m]) : Add(acc[p][m], sum[p][m]);
      if constexpr (R::kOffset) acc[p][m] = Fma(offset, Set(sums[m]), acc[p][m]);
    }
  }
}

// acc[p][m] = dot product of x's row m with the rows of panel p.
template <typename R, int M, int P>
METATTN_INLINE void Multiply(const Tile& t, F32v (&acc)[P][M]) {
  const std::byte* group[P];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    group[p] = t.panel + p * t.panel_bytes;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) acc[p][m] = Zero();
  }
  const float* x = t.x;
  const float* sums = t.sums;
  for (std::int64_t g = 0; g < t.cols / kGroup; ++g) {
    Group<R, M, P>(group, kGroup, x, sums, acc);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) group[p] += R::Bytes(kGroup);
    x += kGroup * M;
    sums += M;
  }
  if constexpr (!R::kScaled) {
    const int rest = static_cast<int>(t.cols % kGroup);
    if (rest != 0) Group<R, M, P>(group, rest, x, sums, acc);
  }
}

// Panels [begin, end) of a segment times one block of rows.
template <typename R, int M, int P>
void BlockPanels(const LinearJob& job, const Activations& a, const Segment& s, std::int64_t begin,
                 std::int64_t end, std::int64_t row) {
  const std::int64_t block = row / kWidest;
  const std::int64_t n = job.weight.rows();
  const int rows = static_cast<int>(Smaller<std::int64_t>(M, job.tokens - row));
  for (std::int64_t panel = begin; panel < end; panel += P) {
    const Tile tile{s.data + (panel - s.first_panel) * s.panel_bytes, s.panel_bytes, a.cols,
                    a.x + block * kWidest * a.cols, a.sums + block * kWidest * a.groups};
    F32v acc[P][M];
    Multiply<R, M, P>(tile, acc);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const std::int64_t local = (panel + p - s.first_panel) * kLanes;
      const int lanes = static_cast<int>(Smaller<std::int64_t>(kLanes, s.rows - local));
      const std::int64_t column = s.first_row + local;
      const F32v bias = job.bias == nullptr ? Zero() : LoadN(job.bias + column, lanes);
      float* out = job.out + row * n + column;
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        if (m < rows) StoreN(out + m * n, Add(acc[p][m], bias), lanes);
      }
    }
  }
}

template <typename R, int M, int P>
void BlockRange(const LinearJob& job, const Activations& a, const Segment& s, std::int64_t begin,
                std::int64_t end, std::int64_t row) {
  const std::int64_t even = begin + (end - begin) / P * P;
  BlockPanels<R, M, P>(job, a, s, begin, even, row);
  if constexpr (P > 1) BlockPanels<R, M, 1>(job, a, s, even, end, row);
}

template <typename R>
void SegmentRange(const LinearJob& job, const Activations& a, const Segment& s, std::int64_t begin,
                  std::int64_t end) {
  for (std::int64_t row = 0; row < job.tokens; row += kWidest) {
    switch (WidthFor(job.tokens - row)) {
      case 1:
        BlockRange<R, 1, 2>(job, a, s, begin, end, row);
        break;
      case 2:
        BlockRange<R, 2, 2>(job, a, s, begin, end, row);
        break;
      case 4:
        BlockRange<R, 4, 1>(job, a, s, begin, end, row);
        break;
      case 8:
        if constexpr (kWidest > 8) BlockRange<R, 8, 1>(job, a, s, begin, end, row);
        break;
      default:
        BlockRange<R, kWidest, 1>(job, a, s, begin, end, row);
    }
  }
}

// Sum of one group of a row of x, in one order whatever the block's width.
float GroupSum(const float* x) {
  F32v sum = Load(x);
  for (int i = kLanes; i < kGroup; i += kLanes) sum = Add(sum, Load(x + i));
  return ReduceAdd(sum);
}

// Interleaves the rows of one block and sums their groups.
void PrepareBlock(const LinearJob& job, std::int64_t row, const Activations& a, float* x,
                  float* sums) {
  const int width = WidthFor(job.tokens - row);
  for (int m = 0; m < width; ++m) {
    const bool real = row + m < job.tokens;
    const float* from = job.x + (row + m) * a.cols;
    if (x != nullptr) {
      for (std::int64_t c = 0; c < a.cols; ++c) x[c * width + m] = real ? from[c] : 0.0f;
    }
    if (sums == nullptr) continue;
    for (std::int64_t g = 0; g < a.groups; ++g) {
      sums[g * width + m] = real ? GroupSum(from + g * kGroup) : 0.0f;
    }
  }
}

bool NeedsSums(const PackedMatrix& weight) {
  for (const Segment& s : weight.segments()) {
    bool offset = false;
    WithReader(s.dtype, [&]<typename R>() { offset = R::kOffset; });
    if (offset) return true;
  }
  return false;
}

// A single row is read where it lies.
Activations Prepare(const LinearJob& job, OpContext& context) {
  Activations a;
  a.cols = job.weight.cols();
  a.groups = a.cols / kGroup;
  const bool copy = job.tokens > 1, sum = NeedsSums(job.weight);
  const std::int64_t blocks = (job.tokens + kWidest - 1) / kWidest;
  const std::int64_t x_values = copy ? blocks * kWidest * a.cols : 0;
  const std::int64_t sum_values = sum ? blocks * kWidest * a.groups : 0;
  auto* scratch = reinterpret_cast<float*>(
      context.scratch.Shared(static_cast<std::size_t>(x_values + sum_values) * sizeof(float)));
  const auto prepare = [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t b = begin; b < end; ++b) {
      PrepareBlock(job, b * kWidest, a, copy ? scratch + b * kWidest * a.cols : nullptr,
                   sum ? scratch + x_values + b * kWidest * a.groups : nullptr);
    }
  };
  if (job.tokens < kSerialPrepare) {
    prepare(0, blocks, 0);
  } else {
    context.pool.ParallelFor(blocks, 1, prepare);
  }
  a.x = copy ? scratch : job.x;
  a.sums = scratch + x_values;
  return a;
}

}  // namespace

void LinearRows(const LinearJob& job, OpContext& context) {
  const Activations a = Prepare(job, context);
  std::int64_t largest = 1;
  for (const Segment& s : job.weight.segments()) largest = Larger(largest, s.panel_bytes);
  const std::int64_t chunk = Larger<std::int64_t>(2, kChunkBytes / largest / 2 * 2);
  context.pool.ParallelFor(
      job.weight.panels(), chunk, [&](std::int64_t begin, std::int64_t end, int) {
        for (const Segment& s : job.weight.segments()) {
          const std::int64_t first = Larger(begin, s.first_panel);
          const std::int64_t last = Smaller(end, s.first_panel + s.panels);
          if (first >= last) continue;
          WithReader(s.dtype, [&]<typename R>() { SegmentRange<R>(job, a, s, first, last); });
        }
      });
}

}  // namespace metattn::cpu::METATTN_ISA
