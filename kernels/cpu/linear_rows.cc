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
// pointer serves all M. Registers on AVX-512: 2 M sums + 3. With one row the sums of following
// groups overlap (out of order), which hides the latency of FMA as well as several panels at once
// would (tried: slower, two streams of memory instead of one). The decoding reads too slowly for
// the hardware's prefetcher to run far enough ahead, so lines are asked for kAheadBytes before
// their use: 14.6 instead of 9.6 GB/s per thread for q4_1. Threads take chunks of panels; inside a
// chunk a block of x stays in L1 while the chunk's panels pass by.
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
constexpr std::int64_t kChunkBytes = 48 << 10;
constexpr std::int64_t kSerialPrepare = 16;  // rows of x from which threads share its preparation

// x as the kernels read it.
struct Activations {
  std::int64_t cols = 0, groups = 0;
  const float* x = nullptr;     // block from row r: [cols][width], at r * cols
  const float* sums = nullptr;  // block from row r: [groups][width], at r * groups
};

struct Range {
  std::int64_t begin, end;
};

int WidthFor(std::int64_t rows) {
  for (int width : kBlocks) {
    if (rows <= width) return width;
  }
  return kWidest;
}

// Adds the products of up to 8 columns (`count`) to the M sums.
template <typename R, int M>
METATTN_INLINE void Octet(const std::byte* group, int octet, int count, const float* x,
                          F32v (&sum)[M]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    if (i >= count) break;
    const F32v q = R::Quant(group, octet, i);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sum[m] = Fma(q, Set(x[i * M + m]), sum[m]);
  }
}

// acc[m] += products of one group of columns.
template <typename R, int M>
METATTN_INLINE void Group(const std::byte* group, int columns, const float* x, const float* sums,
                          F32v (&acc)[M]) {
  for (int line = 0; line < R::Bytes(kGroup); line += 64) {
    _mm_prefetch(group + kAheadBytes + line, _MM_HINT_T0);
  }
  F32v sum[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) sum[m] = Zero();
  int octet = 0;
  for (; octet < columns / 8; ++octet) Octet<R, M>(group, octet, 8, x + octet * 8 * M, sum);
  if constexpr (!R::kScaled) {
    if (columns % 8 != 0) Octet<R, M>(group, octet, columns % 8, x + octet * 8 * M, sum);
  }
  const F32v scale = R::Scale(group), offset = R::Offset(group);
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
    acc[m] = R::kScaled ? Fma(scale, sum[m], acc[m]) : Add(acc[m], sum[m]);
    if constexpr (R::kOffset) acc[m] = Fma(offset, Set(sums[m]), acc[m]);
  }
}

// acc[m] = dot product of row m of the block `x` with the panel's rows.
template <typename R, int M>
METATTN_INLINE void Multiply(const std::byte* panel, std::int64_t cols, const float* x,
                             const float* sums, F32v (&acc)[M]) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) acc[m] = Zero();
  for (std::int64_t g = 0; g < cols / kGroup; ++g) {
    Group<R, M>(panel, kGroup, x, sums, acc);
    panel += R::Bytes(kGroup);
    x += kGroup * M;
    sums += M;
  }
  if constexpr (!R::kScaled) {
    const int rest = static_cast<int>(cols % kGroup);
    if (rest != 0) Group<R, M>(panel, rest, x, sums, acc);
  }
}

// Panels [begin, end) of a segment times the block of M rows that starts at `row`.
template <typename R, int M>
void BlockPanels(const LinearJob& job, const Activations& a, const Segment& s, Range panels,
                 std::int64_t row) {
  const std::int64_t n = job.weight.rows();
  const int rows = static_cast<int>(Smaller<std::int64_t>(M, job.tokens - row));
  for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
    const std::int64_t local = panel - s.first_panel;
    F32v acc[M];
    Multiply<R, M>(s.data + local * s.panel_bytes, a.cols, a.x + row * a.cols,
                   a.sums + row * a.groups, acc);
    const int lanes = static_cast<int>(Smaller<std::int64_t>(kLanes, s.rows - local * kLanes));
    const std::int64_t column = s.first_row + local * kLanes;
    const F32v bias = job.bias == nullptr ? Zero() : LoadN(job.bias + column, lanes);
    float* out = job.out + row * n + column;
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      if (m < rows) StoreN(out + m * n, Add(acc[m], bias), lanes);
    }
  }
}

template <typename R>
void SegmentPanels(const LinearJob& job, const Activations& a, const Segment& s, Range panels) {
  for (std::int64_t row = 0; row < job.tokens; row += kWidest) {
    switch (WidthFor(job.tokens - row)) {
      case 1:
        BlockPanels<R, 1>(job, a, s, panels, row);
        break;
      case 2:
        BlockPanels<R, 2>(job, a, s, panels, row);
        break;
      case 4:
        BlockPanels<R, 4>(job, a, s, panels, row);
        break;
      case 8:
        if constexpr (kWidest > 8) BlockPanels<R, 8>(job, a, s, panels, row);
        break;
      default:
        BlockPanels<R, kWidest>(job, a, s, panels, row);
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
  const std::int64_t chunk = Larger<std::int64_t>(1, kChunkBytes / largest);
  context.pool.ParallelFor(
      job.weight.panels(), chunk, [&](std::int64_t begin, std::int64_t end, int) {
        for (const Segment& s : job.weight.segments()) {
          const Range panels{Larger(begin, s.first_panel), Smaller(end, s.first_panel + s.panels)};
          if (panels.begin >= panels.end) continue;
          WithReader(s.dtype, [&]<typename R>() { SegmentPanels<R>(job, a, s, panels); });
        }
      });
}

}  // namespace metattn::cpu::METATTN_ISA
