// Attention of a tile: Q query vectors (rows x query group) over the pages of one sequence and KV
// head.
//
// Per page of 64 tokens: S = Q K^T in f32, kQueryBlock queries by 64 tokens of accumulators in
// registers, K widened from bf16 as it is loaded; running maximum, exp; O += P V, kQueryBlock
// queries by up to 64 dims in registers. With kQueryBlock = 6, 48 fused multiply-adds stand against
// 8 widenings and 12 broadcasts (AVX-512; AVX2 12 against 4 and 12). Pages of a 256-token span make
// one partial; spans are merged by log-sum-exp in span order. Every (query, token) score and every
// (query, dim) sum is one chain in a fixed order and masked tokens add exact zeros, so a row's bits
// do not depend on the tile, the unit or the thread.
//
// Decode (few queries) is bound by memory: a page is read in the order it lies and the same place
// of the next page is prefetched meanwhile, because rows of 256 bytes and pages of 16 KB are too
// short for the hardware to run ahead on its own. Measured on a loaded machine: 12.4 GB/s a thread
// where plain reading gives 15.6 and the same loop without prefetch 9.7; K in groups of 16 tokens
// (four streams) without prefetch 8.7; prefetching 2 or 4 KB ahead in address order did not help.
// Prefill runs at 0.97 of the peak of f32 fused multiply-adds.
#include "kernels/cpu/attention_tile.h"

#include <cstdint>

#include "kernels/cpu/amx.h"
#include "kernels/cpu/attention_amx.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kQueryBlock = 6;
constexpr int kPageVectors = kBlockTokens / kLanes;
constexpr int kGroupVectors = kGroupTokens / kLanes;
// Vectors of accumulators per query: 4 with 32 registers, 2 with 16.
constexpr int kWide = kLanes == 16 ? 4 : 2;
constexpr int kPagesPerSpan = kSpanTokens / kBlockTokens;
// With more queries a page costs more to compute than to read.
constexpr int kPrefetchQueries = 4;
constexpr float kMinusInfinity = -__builtin_inff();

// Scratch of one worker for a tile; Q queries, each array 64-byte aligned.
struct TileScratch {
  float* q;             // [Q, D] times scale, padding zero
  float* s;             // [Q, 64] scores, then exp(score - m)
  float* o;             // [Q, D]
  float* l;             // [Q, kLanes] lane sums
  float* m;             // [Q]
  std::uint64_t* bits;  // [rows] which tokens of the page the row reads
};

struct TileShape {
  int queries, head_dim, padded;
};

// Span partial as kept for a later merge: o [D], then m, l.
METATTN_INLINE std::int64_t PartialFloats(int padded) { return padded + 16; }

float ExpOne(float x) {
  float lanes[kLanes];
  Store(lanes, Exp(Set(x)));
  return lanes[0];
}

// Scores of QB queries with kVectors vectors of tokens that start at the words `k` of a page; the
// page `ahead` words further on will be needed next.
template <int QB, int kVectors>
METATTN_INLINE void ScoreBlock(const std::uint32_t* k, [[maybe_unused]] std::int64_t ahead,
                               int padded, const float* q, float* s) {
  F32v acc[QB][kVectors];
  for (int i = 0; i < QB; ++i) {
    for (int v = 0; v < kVectors; ++v) acc[i][v] = Zero();
  }
  const int pairs = padded / 2;
  for (int p = 0; p < pairs; ++p) {
    const std::uint32_t* words = k + p * kBlockTokens;
    F32v half[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (QB <= kPrefetchQueries) __builtin_prefetch(words + ahead + v * kLanes, 0, 2);
      half[v] = EvenBf16(words + v * kLanes);
    }
    for (int i = 0; i < QB; ++i) {
      const F32v x = Set(q[i * padded + 2 * p]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(x, half[v], acc[i][v]);
    }
    for (int v = 0; v < kVectors; ++v) {
      half[v] = OddBf16(words + v * kLanes);
    }
    for (int i = 0; i < QB; ++i) {
      const F32v x = Set(q[i * padded + 2 * p + 1]);
      for (int v = 0; v < kVectors; ++v) acc[i][v] = Fma(x, half[v], acc[i][v]);
    }
  }
  for (int i = 0; i < QB; ++i) {
    for (int v = 0; v < kVectors; ++v) Store(s + i * kBlockTokens + v * kLanes, acc[i][v]);
  }
}

// The K or V words of one page, and which of its token groups (K) or tokens (V) are read.
struct PagePart {
  const std::uint32_t* words;
  std::int64_t ahead;  // words to the same place of the page that is read next
  int padded;          // dims of a head in storage
  int first, end;
};

// Token groups [first, end) of a page for QB queries.
template <int QB>
void ScoreGroups(const PagePart& k, const float* q, float* s) {
  constexpr int kAtOnce = kWide / kGroupVectors;
  int g = k.first;
  for (; g + kAtOnce <= k.end; g += kAtOnce) {
    ScoreBlock<QB, kWide>(k.words + g * kGroupTokens, k.ahead, k.padded, q, s + g * kGroupTokens);
  }
  for (; g < k.end; ++g) {
    ScoreBlock<QB, kGroupVectors>(k.words + g * kGroupTokens, k.ahead, k.padded, q,
                                  s + g * kGroupTokens);
  }
}

// acc += P of one token times its dims.
template <int QB, int kVectors>
METATTN_INLINE void AddToken(const float* p, const F32v (&v)[kVectors], F32v (&acc)[QB][kVectors]) {
  for (int i = 0; i < QB; ++i) {
    const F32v x = Set(p[i * kBlockTokens]);
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Fma(x, v[j], acc[i][j]);
  }
}

// O += P V for QB queries and kVectors vectors of dims, tokens [first, end) of the page. Tokens
// outside are not touched: they may never have been written.
template <int QB, int kVectors>
METATTN_INLINE void ValueBlock(const PagePart& part, const float* p, float* o) {
  const std::uint32_t* const v = part.words;
  [[maybe_unused]] const std::int64_t ahead = part.ahead;
  const int padded = part.padded, end = part.end;
  F32v acc[QB][kVectors], half[kVectors];
  for (int i = 0; i < QB; ++i) {
    for (int j = 0; j < kVectors; ++j) acc[i][j] = Load(o + i * padded + j * kLanes);
  }
  int t = part.first;
  if (t % 2 == 1) {
    const std::uint32_t* words = v + t / 2 * padded;
    for (int j = 0; j < kVectors; ++j) half[j] = OddBf16(words + j * kLanes);
    AddToken<QB, kVectors>(p + t, half, acc);
    ++t;
  }
  for (; t + 2 <= end; t += 2) {
    const std::uint32_t* words = v + t / 2 * padded;
    for (int j = 0; j < kVectors; ++j) {
      if constexpr (QB <= kPrefetchQueries) __builtin_prefetch(words + ahead + j * kLanes, 0, 2);
      half[j] = EvenBf16(words + j * kLanes);
    }
    AddToken<QB, kVectors>(p + t, half, acc);
    for (int j = 0; j < kVectors; ++j) half[j] = OddBf16(words + j * kLanes);
    AddToken<QB, kVectors>(p + t + 1, half, acc);
  }
  if (t < end) {
    const std::uint32_t* words = v + t / 2 * padded;
    for (int j = 0; j < kVectors; ++j) half[j] = EvenBf16(words + j * kLanes);
    AddToken<QB, kVectors>(p + t, half, acc);
  }
  for (int i = 0; i < QB; ++i) {
    for (int j = 0; j < kVectors; ++j) Store(o + i * padded + j * kLanes, acc[i][j]);
  }
}

template <int QB>
void AddValues(const PagePart& v, const float* p, float* o) {
  PagePart part = v;
  int d = 0;
  for (; d + kWide * kLanes <= v.padded; d += kWide * kLanes, part.words += kWide * kLanes) {
    ValueBlock<QB, kWide>(part, p, o + d);
  }
  for (; d < v.padded; d += kLanes, part.words += kLanes) ValueBlock<QB, 1>(part, p, o + d);
}

using PageFunction = void (*)(const PagePart&, const float*, float*);
constexpr PageFunction kScore[kQueryBlock] = {ScoreGroups<1>, ScoreGroups<2>, ScoreGroups<3>,
                                              ScoreGroups<4>, ScoreGroups<5>, ScoreGroups<6>};
constexpr PageFunction kValue[kQueryBlock] = {AddValues<1>, AddValues<2>, AddValues<3>,
                                              AddValues<4>, AddValues<5>, AddValues<6>};

// Turns the scores of one query into exp(score - m) with its new maximum. Token groups outside
// [first, end) were not computed and are not read later; `bits` has a token among the others.
void SoftmaxRow(std::uint64_t bits, int first, int end, int query, const TileShape& shape,
                const TileScratch& tile) {
  float* s = tile.s + query * kBlockTokens;
  float* o = tile.o + query * shape.padded;
  float* l = tile.l + query * kLanes;
  F32v scores[kPageVectors];
  F32v largest = Set(kMinusInfinity);
  for (int v = first * kGroupVectors; v < end * kGroupVectors; ++v) {
    scores[v] = Keep(Load(s + v * kLanes), bits >> (v * kLanes), Set(kMinusInfinity));
    largest = Max(largest, scores[v]);
  }
  const float page_max = ReduceMax(largest);
  F32v sum = Load(l);
  if (page_max > tile.m[query]) {
    const F32v factor = Exp(Set(tile.m[query] - page_max));
    for (int d = 0; d < shape.padded; d += kLanes) Store(o + d, Mul(Load(o + d), factor));
    sum = Mul(sum, factor);
    tile.m[query] = page_max;
  }
  const F32v m = Set(tile.m[query]);
  for (int v = first * kGroupVectors; v < end * kGroupVectors; ++v) {
    const F32v p = Exp(Sub(scores[v], m));
    sum = Add(sum, p);
    Store(s + v * kLanes, p);
  }
  Store(l, sum);
}

class TileRunner {
 public:
  TileRunner(const AttentionPlan& plan, const AttentionTask& task, std::byte* scratch)
      : plan_(plan),
        task_(task)
#if defined(__AMX_BF16__)
        ,
        amx_(plan, task, scratch)
#endif
  {
    shape_.head_dim = task.pages.head_dim;
    shape_.padded = PaddedDim(shape_.head_dim);
    const std::int64_t queries = Queries(plan, task);
    float* at = reinterpret_cast<float*>(scratch + AmxBytes(plan, task));
    tile_.q = at;
    at += queries * shape_.padded;
    tile_.o = at;
    at += queries * shape_.padded;
    tile_.s = at;
    at += queries * kBlockTokens;
    tile_.l = at;
    at += queries * kLanes;
    tile_.bits = reinterpret_cast<std::uint64_t*>(at);
    at += plan.max_rows * 2;
    tile_.m = at;
  }

  static std::size_t Bytes(const AttentionPlan& plan, const AttentionTask& task) {
    const std::int64_t queries = Queries(plan, task);
    const std::int64_t per_query = 2 * PaddedDim(task.pages.head_dim) + kBlockTokens + kLanes + 1;
    return AmxBytes(plan, task) +
           static_cast<std::size_t>(queries * per_query + plan.max_rows * 2) * sizeof(float);
  }

  // A tile that no other thread works on: spans go straight into the output.
  void RunWhole(const Tile& tile) {
    Start(tile);
    if (task_.fresh) Clear(tile);
    for (int i = 0; i < tile.spans; ++i) {
      RunSpan(tile, tile.SpanAt(i));
      for (int query = 0; query < shape_.queries; ++query) {
        Merge(tile, query, tile_.o + query * shape_.padded, tile_.m[query],
              ReduceAdd(Load(tile_.l + query * kLanes)));
      }
    }
  }

  // A unit of a shared tile: its span partials go to `partials` [spans, Q].
  void RunUnit(const Tile& tile, const Unit& unit, float* partials) {
    Start(tile);
    for (int i = unit.first; i < unit.end; ++i) {
      RunSpan(tile, tile.SpanAt(i));
      for (int query = 0; query < shape_.queries; ++query) {
        float* to =
            partials + (std::int64_t{i} * shape_.queries + query) * PartialFloats(shape_.padded);
        for (int d = 0; d < shape_.padded; d += kLanes) {
          Store(to + d, Load(tile_.o + query * shape_.padded + d));
        }
        to[shape_.padded] = tile_.m[query];
        to[shape_.padded + 1] = ReduceAdd(Load(tile_.l + query * kLanes));
      }
    }
  }

  // All units of the tile are done: merges their partials in span order.
  void MergeUnits(const Tile& tile, const float* partials) {
    shape_.queries = tile.rows * task_.group;
    if (task_.fresh) Clear(tile);
    for (std::int64_t i = 0; i < std::int64_t{tile.spans} * shape_.queries; ++i) {
      const float* from = partials + i * PartialFloats(shape_.padded);
      Merge(tile, static_cast<int>(i % shape_.queries), from, from[shape_.padded],
            from[shape_.padded + 1]);
    }
  }

 private:
  // Room for query vectors: tiles of AMX are 16 of them.
  static std::int64_t Queries(const AttentionPlan& plan, const AttentionTask& task) {
    return (std::int64_t{plan.max_rows} * task.group + 15) / 16 * 16;
  }
  static std::size_t AmxBytes([[maybe_unused]] const AttentionPlan& plan,
                              [[maybe_unused]] const AttentionTask& task) {
#if defined(__AMX_BF16__)
    if (task.amx) return (AmxSpans::Bytes(plan, task) + 63) / 64 * 64;
#endif
    return 0;
  }
  bool OnAmx() const { return task_.amx && shape_.queries >= kAmxQueries; }

  // Index of a tile's query in [T, H*g].
  std::int64_t Index(const Tile& tile, int query) const {
    const std::int64_t row = plan_.ranges[tile.first_range + query / task_.group].row;
    return row * task_.pages.heads * task_.group + tile.head * task_.group + query % task_.group;
  }

  void Start(const Tile& tile) {
    shape_.queries = tile.rows * task_.group;
#if defined(__AMX_BF16__)
    if (OnAmx()) {
      amx_.Start(shape_.queries,
                 [&](int query) { return task_.q + Index(tile, query) * shape_.head_dim; });
      return;
    }
#endif
    const F32v scale = Set(task_.scale);
    for (int query = 0; query < shape_.queries; ++query) {
      const float* from = task_.q + Index(tile, query) * shape_.head_dim;
      float* to = tile_.q + query * shape_.padded;
      for (int d = 0; d < shape_.padded; d += kLanes) {
        const int n = Larger(0, Smaller(kLanes, shape_.head_dim - d));
        Store(to + d, Mul(LoadN(from + d, n), scale));
      }
    }
  }

  void Clear(const Tile& tile) {
    for (int query = 0; query < shape_.queries; ++query) {
      const std::int64_t index = Index(tile, query);
      float* o = task_.partial.o.As<float>() + index * shape_.head_dim;
      for (int d = 0; d < shape_.head_dim; ++d) o[d] = 0.0f;
      task_.partial.m.As<float>()[index] = kMinusInfinity;
      task_.partial.l.As<float>()[index] = 0.0f;
    }
  }

  void RunSpan(const Tile& tile, int span) {
#if defined(__AMX_BF16__)
    if (OnAmx()) return amx_.Run(tile, span, {tile_.o, tile_.l, tile_.m});
#endif
    for (std::int64_t i = 0; i < std::int64_t{shape_.queries} * shape_.padded; i += kLanes) {
      Store(tile_.o + i, Zero());
    }
    for (int query = 0; query < shape_.queries; ++query) {
      tile_.m[query] = kMinusInfinity;
      Store(tile_.l + query * kLanes, Zero());
    }
    for (int page = span * kPagesPerSpan; page < (span + 1) * kPagesPerSpan; ++page) {
      RunPage(tile, page);
    }
  }

  void RunPage(const Tile& tile, int page) {
    std::uint64_t any = 0;
    for (int r = 0; r < tile.rows; ++r) {
      const RowRange& range = plan_.ranges[tile.first_range + r];
      tile_.bits[r] = TokensRead(range, page);
      any |= tile_.bits[r];
    }
    if (any == 0) return;
    const int first = __builtin_ctzll(any), end = kBlockTokens - __builtin_clzll(any);
    const int first_group = first / kGroupTokens;
    const int end_group = (end + kGroupTokens - 1) / kGroupTokens;
    const auto* table = task_.rows.table_begin.As<std::int32_t>() + tile.sequence;
    const auto* blocks = task_.rows.blocks.As<std::int32_t>();
    const std::uint32_t* k = PageAt(task_.pages, blocks[table[0] + page], tile.head);
    const std::int32_t next = Smaller(table[0] + page + 1, table[1] - 1);
    const std::int64_t ahead = PageAt(task_.pages, blocks[next], tile.head) - k;
    const PagePart keys = {k, ahead, shape_.padded, first_group, end_group};
    const PagePart values = {k + KeyWords(shape_.padded), ahead, shape_.padded, first, end};
    for (int query = 0; query < shape_.queries; query += kQueryBlock) {
      const int n = Smaller(kQueryBlock, shape_.queries - query);
      kScore[n - 1](keys, tile_.q + query * shape_.padded, tile_.s + query * kBlockTokens);
    }
    for (int query = 0; query < shape_.queries; ++query) {
      const std::uint64_t bits = tile_.bits[query / task_.group];
      if (bits != 0) {
        SoftmaxRow(bits, first_group, end_group, query, shape_, tile_);
      } else {
        float* s = tile_.s + query * kBlockTokens;
        for (int i = 0; i < kBlockTokens; i += kLanes) Store(s + i, Zero());
      }
    }
    for (int query = 0; query < shape_.queries; query += kQueryBlock) {
      const int n = Smaller(kQueryBlock, shape_.queries - query);
      kValue[n - 1](values, tile_.s + query * kBlockTokens, tile_.o + query * shape_.padded);
    }
  }

  // Adds the partial (o, m, l) of a span to the output's.
  void Merge(const Tile& tile, int query, const float* o, float m, float l) {
    if (m == kMinusInfinity) return;  // the row reads nothing there
    const std::int64_t index = Index(tile, query);
    float* out_o = task_.partial.o.As<float>() + index * shape_.head_dim;
    float* out_m = task_.partial.m.As<float>() + index;
    float* out_l = task_.partial.l.As<float>() + index;
    const float largest = Larger(*out_m, m);
    const float keep = ExpOne(*out_m - largest), add = ExpOne(m - largest);
    for (int d = 0; d < shape_.head_dim; d += kLanes) {
      const int n = Smaller(kLanes, shape_.head_dim - d);
      const F32v sum = Fma(Load(o + d), Set(add), Mul(LoadN(out_o + d, n), Set(keep)));
      StoreN(out_o + d, sum, n);
    }
    *out_m = largest;
    *out_l = *out_l * keep + l * add;
  }

  const AttentionPlan& plan_;
  const AttentionTask& task_;
  TileShape shape_;
  TileScratch tile_;
#if defined(__AMX_BF16__)
  AmxSpans amx_;
#endif
};

}  // namespace

void RunAttention(const AttentionPlan& plan, const AttentionTask& task, OpContext& context) {
  if (plan.unit_count == 0 || task.group == 0) return;
  const int padded = PaddedDim(task.pages.head_dim);
  const std::int64_t counters = (std::int64_t{plan.tile_count} * 4 + 63) / 64 * 64;
  std::byte* shared = context.scratch.Shared(
      static_cast<std::size_t>(counters + plan.partials * PartialFloats(padded) * 4));
  auto* units_left = reinterpret_cast<std::int32_t*>(shared);
  auto* partials = reinterpret_cast<float*>(shared + counters);
  for (int i = 0; i < plan.tile_count; ++i) units_left[i] = plan.tiles[i].units;
  const std::size_t bytes = TileRunner::Bytes(plan, task);
  context.pool.ParallelFor(
      plan.unit_count, 1, [&](std::int64_t begin, std::int64_t end, int worker) {
        TileRunner runner(plan, task, context.scratch.Worker(worker, bytes));
#if defined(__AMX_BF16__)
        if (task.amx) ConfigureTiles();
#endif
        for (std::int64_t u = begin; u < end; ++u) {
          const Unit& unit = plan.units[u];
          const Tile& tile = plan.tiles[unit.tile];
          if (tile.units == 1) {
            runner.RunWhole(tile);
            continue;
          }
          float* mine = partials + tile.first_partial * PartialFloats(padded);
          runner.RunUnit(tile, unit, mine);
          if (__atomic_sub_fetch(&units_left[unit.tile], 1, __ATOMIC_ACQ_REL) == 0) {
            runner.MergeUnits(tile, mine);
          }
        }
#if defined(__AMX_BF16__)
        if (task.amx) _tile_release();
#endif
      });
}

}  // namespace metattn::cpu::METATTN_ISA
