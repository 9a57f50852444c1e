// Attention of a span (256 tokens) by bf16 tiles (tile_block.h), 32 query vectors at a time.
//
// Pages are operands as they lie: K is [D / 2][64 tokens][2], so 16 lines of it, 16 tokens wide,
// are the B tile of S = Q K^T; V is [32][D][2 tokens], so 16 lines, 16 dims wide, are that of
// O += P V. Two tiles of queries by two of tokens or dims stand in C: one tile load per product.
//   S: a span's scores of 32 queries, 32 KB, stay in the first cache level. Unscaled; q is rounded
//      to bf16, scale is applied in f32.
//   Softmax: one maximum per query and span, so nothing is ever rescaled inside a span. P is
//      rounded to bf16 over the scores it came from, just where it is an A tile. l is the sum of P
//      before rounding: exact up to f32's roundoff whatever m is, and the roundings of P, to
//      nearest, have no direction that dividing by their sum would have to undo.
//   O: 32 dims in C over all tokens of the span, stored once.
// The softmax is the larger part: 12 instructions per 16 scores and both passes read them.
//
// Tokens nobody of the tile reads may be NaN: chunks of 32 without a reader are left out; where
// only some tokens are read, V is copied and the others made zero, because 0 * NaN is not 0. In K
// each token is a column of its own, whose scores are masked. Every C element is one chain over
// tokens in order, and masked tokens add zeros, so a row does not depend on its neighbours.
#include "kernels/cpu/attention_bf16.h"

#if defined(__AVX512BF16__)

#include <cstdint>

#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/tile_block.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kBlock = 2 * kTileSide;  // queries at a time
constexpr int kPages = kSpanTokens / kBlockTokens;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2 = 0.69314718055994531f;

METATTN_INLINE std::int64_t RoundedQueries(const AttentionPlan& plan, int group) {
  return (std::int64_t{plan.max_rows} * group + kTileSide - 1) / kTileSide * kTileSide;
}

// 2^x, relative error below 3e-7, zero below -150; NaN stays NaN.
METATTN_INLINE F32v Exp2(F32v x) {
  x = Max(Set(-200.0f), x);
  const F32v n = RoundToInt(x), r = Sub(x, n);
  F32v p = Set(0.0013381457f);
  p = Fma(p, r, Set(0.00966636837f));
  p = Fma(p, r, Set(0.0555038042f));
  p = Fma(p, r, Set(0.240223497f));
  p = Fma(p, r, Set(0.693147182f));
  p = Fma(p, r, Set(1.0f));
  return Scale2(p, n);
}

}  // namespace

Bf16Spans::Bf16Spans(const AttentionPlan& plan, const AttentionTask& task, std::byte* scratch)
    : plan_(plan), task_(task), dim_(task.pages.head_dim) {
  s_ = reinterpret_cast<float*>(scratch);
  v_ = reinterpret_cast<std::uint32_t*>(s_ + 2 * kChunks * kChunkFloats);
  q_ = reinterpret_cast<std::uint16_t*>(v_ + kChunks * kTileSide * dim_);
  masks_ = reinterpret_cast<std::uint64_t*>(q_ + RoundedQueries(plan, task.group) * dim_);
}

std::size_t Bf16Spans::Bytes(const AttentionPlan& plan, const AttentionTask& task) {
  const std::int64_t dim = task.pages.head_dim;
  return static_cast<std::size_t>((2 * kChunks * kChunkFloats + kChunks * kTileSide * dim) * 4 +
                                  RoundedQueries(plan, task.group) * dim * 2 +
                                  std::int64_t{plan.max_rows} * kPages * 8);
}

void Bf16Spans::RoundQuery(const float* q, int query) {
  std::uint16_t* to = q_ + std::int64_t{query} * dim_;
  for (int d = 0; d < dim_; d += 2 * kLanes) {
    __m512i both = _mm512_setzero_si512();
    if (q != nullptr) both = (__m512i)_mm512_cvtne2ps_pbh(Load(q + d + kLanes), Load(q + d));
    _mm512_storeu_si512(to + d, both);
  }
}

// A copy of a chunk's V with only `tokens` of it, the others zero.
const std::uint32_t* Bf16Spans::MaskValues(const std::uint32_t* v, std::uint32_t tokens,
                                           int index) {
  std::uint32_t* copy = v_ + std::int64_t{index} * kTileSide * dim_;
  for (int pair = 0; pair < kTileSide; ++pair, tokens >>= 2) {
    const std::uint32_t halves = (tokens & 1 ? 0xffffu : 0) | (tokens & 2 ? 0xffff0000u : 0);
    const __m512i keep = _mm512_set1_epi32(static_cast<int>(halves));
    for (int d = pair * dim_; d < (pair + 1) * dim_; d += kLanes) {
      _mm512_storeu_si512(copy + d, _mm512_and_si512(_mm512_loadu_si512(v + d), keep));
    }
  }
  return copy;
}

void Bf16Spans::FindChunks(const Tile& tile, int span) {
  std::uint64_t any[kPages] = {};
  for (int r = 0; r < tile.rows; ++r) {
    const RowRange& range = plan_.ranges[tile.first_range + r];
    for (int page = 0; page < kPages; ++page) {
      const std::uint64_t bits = TokensRead(range, span * kPages + page);
      masks_[r * kPages + page] = bits;
      any[page] |= bits;
    }
  }
  const auto* table = task_.rows.table_begin.As<std::int32_t>() + tile.sequence;
  const auto* blocks = task_.rows.blocks.As<std::int32_t>() + table[0] + span * kPages;
  count_ = 0;
  for (int i = 0; i < kChunks; ++i) {
    const int page = i / 2, half = i % 2;
    const auto tokens = static_cast<std::uint32_t>(any[page] >> (half * kChunk));
    if (tokens == 0) continue;
    const std::uint32_t* k = PageAt(task_.pages, blocks[page], tile.head);
    const std::uint32_t* v = k + KeyWords(dim_) + half * kTileSide * dim_;
    if (tokens != ~std::uint32_t{0}) v = MaskValues(v, tokens, i);
    chunks_[count_++] = {k + half * kChunk, v, i};
  }
}

// Scores of one or two tiles of queries with all chunks.
template <int kRowTiles>
void Bf16Spans::Scores(const std::uint16_t* q) {
  const TileStrides by = {dim_ * 2, kTileSide * dim_ * 2, kBlockTokens * 4, kTileSide * 4};
  float* s = s_;
  for (int c = 0; c < count_; ++c, s += kChunkFloats) {
    const std::uint32_t* const k = chunks_[c].k;
    const auto step = [&](std::int64_t i) -> TileStep {
      return {q + i * kBlock, k + i * kTileSide * kBlockTokens};
    };
    MultiplyTiles<kRowTiles, 2, false>(
        by, dim_ / kBlock, step, kRowTiles * kTileSide,
        {s, kTileSide, kTileSide * kTileSide, kChunks * kChunkFloats});
  }
}

// Log-sum-exp of the sinks for the queries of one tile, `first` and on. A row that reads the sinks
// reads all of them, so the first chunks are theirs.
void Bf16Spans::Sinks(int first, const SpanSums& out) {
  const float* s = s_ + first / kTileSide % 2 * kChunks * kChunkFloats;
  F32v lse = Set(kMinusInfinity);
  for (int begin = 0; begin < sinks_; begin += kTileSide, s += kTileSide * kTileSide) {
    const F32v more = ColumnsLse(s, kTileSide, Smaller(sinks_ - begin, kTileSide), task_.scale);
    lse = begin == 0 ? more : LogAddExp(lse, more);
  }
  Store(out.sink + first, lse);
}

// Turns the scores of one query into bf16 probabilities, m and the lanes of l; with statistics the
// lanes of t.
template <bool kStats>
void Bf16Spans::Softmax(int query, const SpanSums& out) {
  float* const s =
      s_ + query / kTileSide % 2 * kChunks * kChunkFloats + query % kTileSide * kTileSide;
  const auto* bits = reinterpret_cast<const std::uint32_t*>(masks_ + query / task_.group * kPages);
  constexpr std::uint32_t kAll = ~std::uint32_t{0};
  F32v largest[2] = {Set(kMinusInfinity), Set(kMinusInfinity)};
  for (int c = 0; c < count_; ++c) {
    const float* at = s + c * kChunkFloats;
    const std::uint32_t read = bits[chunks_[c].index];
    F32v low = Load(at), high = Load(at + kTileSide * kTileSide);
    if (read != kAll) {
      low = Keep(low, read, Set(kMinusInfinity));
      high = Keep(high, read >> kTileSide, Set(kMinusInfinity));
    }
    largest[0] = Max(largest[0], low);
    largest[1] = Max(largest[1], high);
  }
  const float m = ReduceMax(Max(largest[0], largest[1]));
  out.m[query] = m * task_.scale;
  const F32v factor = Set(task_.scale * kLog2E);
  const F32v shift = Set(m == kMinusInfinity ? 0.0f : m);  // the largest gives exactly 1
  F32v sum[2] = {Zero(), Zero()};
  [[maybe_unused]] F32v off[2] = {Zero(), Zero()};  // sum p (score - m), to base 2
  for (int c = 0; c < count_; ++c) {
    float* at = s + c * kChunkFloats;
    const std::uint32_t read = bits[chunks_[c].index];
    F32v low_off = Mul(Sub(Load(at), shift), factor);
    F32v high_off = Mul(Sub(Load(at + kTileSide * kTileSide), shift), factor);
    F32v low = Exp2(low_off);
    F32v high = Exp2(high_off);
    if (read != kAll) {
      low = Keep(low, read, Zero());
      high = Keep(high, read >> kTileSide, Zero());
      if constexpr (kStats) {
        low_off = Keep(low_off, read, Zero());
        high_off = Keep(high_off, read >> kTileSide, Zero());
      }
    }
    if constexpr (kStats) {
      off[0] = Fma(low, low_off, off[0]);
      off[1] = Fma(high, high_off, off[1]);
    }
    sum[0] = Add(sum[0], low);
    sum[1] = Add(sum[1], high);
    _mm512_storeu_si512(at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
  Store(out.l + query * kLanes, Add(sum[0], sum[1]));
  if constexpr (kStats) Store(out.t + query * kLanes, Mul(Add(off[0], off[1]), Set(kLn2)));
}

// O of one or two tiles of queries.
template <int kRowTiles>
void Bf16Spans::Values(float* o) {
  const TileStrides by = {kTileSide * 4, kChunks * kChunkFloats * 4, dim_ * 4, kTileSide * 4};
  for (int d = 0; d < dim_; d += kBlock) {
    const auto step = [&](std::int64_t c) -> TileStep {
      return {s_ + c * kChunkFloats, chunks_[c].v + d};
    };
    MultiplyTiles<kRowTiles, 2, false>(by, count_, step, kRowTiles * kTileSide,
                                       {o + d, dim_, kTileSide, std::int64_t{kTileSide} * dim_});
  }
}

template <int kRowTiles, bool kStats>
void Bf16Spans::Block(int first, const SpanSums& out) {
  Scores<kRowTiles>(q_ + std::int64_t{first} * dim_);
  if constexpr (kStats) {
    for (int tile = 0; tile < kRowTiles; ++tile) Sinks(first + tile * kTileSide, out);
  }
  for (int query = first; query < Smaller(first + kRowTiles * kTileSide, queries_); ++query) {
    Softmax<kStats>(query, out);
  }
  Values<kRowTiles>(out.o + std::int64_t{first} * dim_);
}

void Bf16Spans::Run(const Tile& tile, int span, const SpanSums& out) {
  FindChunks(tile, span);
  sinks_ = SinksIn(task_.rows.sinks, span, kSpanTokens);
  const bool stats = out.t != nullptr;
  for (int first = 0; first < queries_; first += kBlock) {
    if (queries_ - first > kTileSide) {
      stats ? Block<2, true>(first, out) : Block<2, false>(first, out);
    } else {
      stats ? Block<1, true>(first, out) : Block<1, false>(first, out);
    }
  }
}

}  // namespace metattn::cpu::METATTN_ISA

#endif  // __AVX512BF16__
