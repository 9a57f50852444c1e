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

#include "kernels/cpu/attention_bf16.h"
#include "kernels/cpu/attention_stats.h"
#include "kernels/cpu/page_products.h"
#include "kernels/cpu/page_softmax.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/tile_block.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kPagesPerSpan = kSpanTokens / kBlockTokens;

// Scratch of one worker for a tile; Q queries, each array 64-byte aligned.
struct TileScratch {
  float* q;             // [Q, D] times scale, padding zero
  float* s;             // [Q, 64] scores, then exp(score - m)
  float* o;             // [Q, D]
  float* l;             // [Q, kLanes] lane sums
  float* t;             // [Q, kLanes] lane sums of p (score - m); statistics only
  float* sink;          // [Q] log-sum-exp of the span's sinks; statistics only
  float* m;             // [Q]
  std::uint64_t* bits;  // [rows] which tokens of the page the row reads
};

struct TileShape {
  int queries, head_dim, padded;
};

// A span's sums of one query; t and sink with statistics only.
struct SpanPartial {
  const float* o;  // [D]
  float m, l;
  float t = 0.0f, sink = kMinusInfinity;
};

// As kept for a later merge: o [D], then m, l, t, sink.
METATTN_INLINE std::int64_t PartialFloats(int padded) { return padded + 16; }

// Up to kLanes spans of one query as kept, `stride` floats apart.
struct KeptSpans {
  const float* first;
  std::int64_t stride;
  int count;
};

// How a span is merged: o = keep o + add span.o, about the maximum `largest`.
struct MergeFactors {
  float largest, keep, add;
};

class TileRunner {
 public:
  TileRunner(const AttentionPlan& plan, const AttentionTask& task, std::byte* scratch)
      : plan_(plan),
        task_(task)
#if defined(__AVX512BF16__)
        ,
        bf16_(plan, task, scratch)
#endif
  {
    shape_.head_dim = task.pages.head_dim;
    shape_.padded = PaddedDim(shape_.head_dim);
    const std::int64_t queries = Queries(plan, task);
    float* at = reinterpret_cast<float*>(scratch + Bf16Bytes(plan, task));
    tile_.q = at;
    at += queries * shape_.padded;
    tile_.o = at;
    at += queries * shape_.padded;
    tile_.s = at;
    at += queries * kBlockTokens;
    tile_.l = at;
    at += queries * kLanes;
    tile_.t = at;
    at += queries * kLanes;
    tile_.sink = at;
    at += queries;
    tile_.bits = reinterpret_cast<std::uint64_t*>(at);
    at += plan.max_rows * 2;
    tile_.m = at;
  }

  static std::size_t Bytes(const AttentionPlan& plan, const AttentionTask& task) {
    const std::int64_t queries = Queries(plan, task);
    const std::int64_t per_query =
        2 * PaddedDim(task.pages.head_dim) + kBlockTokens + 2 * kLanes + 2;
    return Bf16Bytes(plan, task) +
           static_cast<std::size_t>(queries * per_query + plan.max_rows * 2) * sizeof(float);
  }

  // A tile that no other thread works on: spans go straight into the output.
  void RunWhole(const Tile& tile) {
    Start(tile);
    if (task_.fresh) Clear(tile);
    for (int i = 0; i < tile.spans; ++i) {
      RunSpan(tile, tile.SpanAt(i));
      ForEachQuery(tile, [&](int query, std::int64_t index, bool stats) {
        Merge(index, stats, SpanOf(query));
      });
    }
    FinishStats(tile);
  }

  // A unit of a shared tile: its span partials go to `partials` [spans, Q].
  void RunUnit(const Tile& tile, const Unit& unit, float* partials) {
    Start(tile);
    for (int i = unit.first; i < unit.end; ++i) {
      RunSpan(tile, tile.SpanAt(i));
      for (int query = 0; query < shape_.queries; ++query) {
        float* to =
            partials + (std::int64_t{i} * shape_.queries + query) * PartialFloats(shape_.padded);
        const SpanPartial span = SpanOf(query);
        for (int d = 0; d < shape_.padded; d += kLanes) Store(to + d, Load(span.o + d));
        to += shape_.padded;
        to[0] = span.m;
        to[1] = span.l;
        to[2] = span.t;
        to[3] = span.sink;
      }
    }
  }

  // All units of the tile are done: merges their partials in span order.
  void MergeUnits(const Tile& tile, const float* partials) {
    Prepare(tile);
    if (task_.fresh) Clear(tile);
    const std::int64_t floats = PartialFloats(shape_.padded);
    for (int first = 0; first < tile.spans; first += kLanes) {
      const int spans = Smaller(kLanes, tile.spans - first);
      ForEachQuery(tile, [&](int query, std::int64_t index, bool stats) {
        const float* of = partials + (std::int64_t{first} * shape_.queries + query) * floats;
        MergeSpans(index, stats, {of, shape_.queries * floats, spans});
      });
    }
    FinishStats(tile);
  }

 private:
  // Room for query vectors: bf16 tiles are 16 of them.
  static std::int64_t Queries(const AttentionPlan& plan, const AttentionTask& task) {
    return (std::int64_t{plan.max_rows} * task.group + 15) / 16 * 16;
  }
  static std::size_t Bf16Bytes([[maybe_unused]] const AttentionPlan& plan,
                               [[maybe_unused]] const AttentionTask& task) {
#if defined(__AVX512BF16__)
    if (task.bf16) return (Bf16Spans::Bytes(plan, task) + 63) / 64 * 64;
#endif
    return 0;
  }
  bool OnBf16() const { return task_.bf16 && shape_.queries >= kBf16Queries; }

  // Index of a tile's query in [T, H*g].
  std::int64_t Index(const Tile& tile, int query) const {
    const std::int64_t row = plan_.ranges[tile.first_range + query / task_.group].row;
    return row * task_.pages.heads * task_.group + tile.head * task_.group + query % task_.group;
  }

  // function(query, its index in [T, H*g], whether its statistics are wanted), in order.
  template <typename Function>
  METATTN_INLINE void ForEachQuery(const Tile& tile, Function function) const {
    int query = 0;
    for (int r = 0; r < tile.rows; ++r) {
      const bool stats = stats_ && Eligible(tile, r);
      const std::int64_t first = Index(tile, query);
      for (int i = 0; i < task_.group; ++i) function(query++, first + i, stats);
    }
  }

  bool Eligible(const Tile& tile, int row) const {
    const std::int32_t t = plan_.ranges[tile.first_range + row].row;
    return task_.rows.Eligible(task_.rows.far_end.As<std::int32_t>()[t]);
  }

  void Prepare(const Tile& tile) {
    shape_.queries = tile.rows * task_.group;
    stats_ = false;
    for (int r = 0; task_.stats != nullptr && r < tile.rows && !stats_; ++r) {
      stats_ = Eligible(tile, r);
    }
  }

  void Start(const Tile& tile) {
    Prepare(tile);
#if defined(__AVX512BF16__)
    if (OnBf16()) {
      bf16_.Start(shape_.queries,
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
    ForEachQuery(tile, [&](int, std::int64_t index, bool stats) {
      float* o = task_.partial.o.As<float>() + index * shape_.head_dim;
      for (int d = 0; d < shape_.head_dim; ++d) o[d] = 0.0f;
      task_.partial.m.As<float>()[index] = kMinusInfinity;
      task_.partial.l.As<float>()[index] = 0.0f;
      if (!stats) return;
      task_.stats[2 * index] = kMinusInfinity;
      task_.stats[2 * index + 1] = 0.0f;  // t until FinishStats
    });
  }

  void FinishStats(const Tile& tile) const {
    if (!stats_) return;
    ForEachQuery(tile, [&](int, std::int64_t index, bool stats) {
      if (!stats) return;
      const float t = task_.stats[2 * index + 1];
      task_.stats[2 * index + 1] =
          task_.partial.m.As<float>()[index] + t / task_.partial.l.As<float>()[index];
    });
  }

  void RunSpan(const Tile& tile, int span) {
#if defined(__AVX512BF16__)
    if (OnBf16()) {
      return bf16_.Run(tile, span,
                       {tile_.o, tile_.l, tile_.m, stats_ ? tile_.t : nullptr, tile_.sink});
    }
#endif
    for (std::int64_t i = 0; i < std::int64_t{shape_.queries} * shape_.padded; i += kLanes) {
      Store(tile_.o + i, Zero());
    }
    for (int query = 0; query < shape_.queries; ++query) {
      tile_.m[query] = kMinusInfinity;
      Store(tile_.l + query * kLanes, Zero());
      Store(tile_.t + query * kLanes, Zero());
      tile_.sink[query] = kMinusInfinity;
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
    const PagePart keys = {k, ahead, shape_.padded, first_group, end_group, 0};
    const PagePart values = {
        k + KeyWords(shape_.padded), ahead, shape_.padded, first, end, shape_.padded};
    for (int query = 0; query < shape_.queries; query += kQueryBlock) {
      const int n = Smaller(kQueryBlock, shape_.queries - query);
      kScore[n - 1](keys, tile_.q + query * shape_.padded, tile_.s + query * kBlockTokens);
    }
    if (stats_) AddSinks(page);
    for (int query = 0; query < shape_.queries; ++query) {
      const std::uint64_t bits = tile_.bits[query / task_.group];
      float* s = tile_.s + query * kBlockTokens;
      if (bits != 0) {
        SoftmaxPage(bits, keys,
                    {s, tile_.o + query * shape_.padded, tile_.l + query * kLanes,
                     stats_ ? tile_.t + query * kLanes : nullptr, tile_.m + query});
      } else {
        for (int i = 0; i < kBlockTokens; i += kLanes) Store(s + i, Zero());
      }
    }
    for (int query = 0; query < shape_.queries; query += kQueryBlock) {
      const int n = Smaller(kQueryBlock, shape_.queries - query);
      kValue[n - 1](values, tile_.s + query * kBlockTokens, tile_.o + query * shape_.padded);
    }
  }

  // Sinks of the page whose scores were just taken.
  void AddSinks(int page) {
    const int count = SinksIn(task_.rows.sinks, page, kBlockTokens);
    if (count == 0) return;
    for (int query = 0; query < shape_.queries; query += kLanes) {
      float* sink = tile_.sink + query;  // there is room for whole vectors
      const F32v lse = ColumnsLse(tile_.s + query * kBlockTokens, kBlockTokens, count, 1.0f);
      Store(sink, page % kPagesPerSpan == 0 ? lse : LogAddExp(Load(sink), lse));
    }
  }

  // What RunSpan left.
  SpanPartial SpanOf(int query) const {
    SpanPartial span = {tile_.o + query * shape_.padded, tile_.m[query],
                        ReduceAdd(Load(tile_.l + query * kLanes))};
    if (stats_) {
      span.t = ReduceAdd(Load(tile_.t + query * kLanes));
      span.sink = tile_.sink[query];
    }
    return span;
  }

  // Adds a span to the output.
  void Merge(std::int64_t index, bool stats, const SpanPartial& span) {
    if (span.m == kMinusInfinity) return;  // the row reads nothing there
    const float m = task_.partial.m.As<float>()[index];
    const float largest = Larger(m, span.m);
    const MergeFactors by = {largest, ExpOne(m - largest), ExpOne(span.m - largest)};
    MergeSums(index, stats, span, by);
    float* out = task_.partial.o.As<float>() + index * shape_.head_dim;
    for (int d = 0; d < shape_.head_dim; d += kLanes) {
      const int n = Smaller(kLanes, shape_.head_dim - d);
      StoreN(out + d, MergeVector(LoadN(out + d, n), span.o + d, by), n);
    }
  }

  // Adds spans in their order: to the bit as one by one, but their exponentials are made together
  // and o stays in registers. Other threads have just written them.
  void MergeSpans(std::int64_t index, bool stats, const KeptSpans& kept) {
    SpanPartial spans[kLanes];
    float own[kLanes] = {}, before[kLanes] = {}, largest[kLanes] = {};
    float m = task_.partial.m.As<float>()[index];
    int count = 0;
    for (int i = 0; i < kept.count; ++i) {
      const float* o = kept.first + i * kept.stride;
      const float* of = o + shape_.padded;
      for (int d = 0; d < shape_.padded; d += 16) __builtin_prefetch(o + d);
      if (of[0] == kMinusInfinity) continue;  // the row reads nothing there
      before[count] = m;
      largest[count] = m = Larger(m, of[0]);
      own[count] = of[0];
      spans[count++] = {o, of[0], of[1], of[2], of[3]};
    }
    float keep[kLanes], add[kLanes];
    Store(keep, Exp(Sub(Load(before), Load(largest))));
    Store(add, Exp(Sub(Load(own), Load(largest))));
    for (int i = 0; i < count; ++i) {
      MergeSums(index, stats, spans[i], {largest[i], keep[i], add[i]});
    }
    float* out = task_.partial.o.As<float>() + index * shape_.head_dim;
    for (int d = 0; d < shape_.head_dim; d += kLanes) {
      const int n = Smaller(kLanes, shape_.head_dim - d);
      F32v o = LoadN(out + d, n);
      for (int i = 0; i < count; ++i) {
        o = MergeVector(o, spans[i].o + d, {largest[i], keep[i], add[i]});
      }
      StoreN(out + d, o, n);
    }
  }

  static F32v MergeVector(F32v o, const float* span, const MergeFactors& by) {
    return Fma(Load(span), Set(by.add), Mul(o, Set(by.keep)));
  }

  // All of a span but o.
  void MergeSums(std::int64_t index, bool stats, const SpanPartial& span, const MergeFactors& by) {
    float& m = task_.partial.m.As<float>()[index];
    float& l = task_.partial.l.As<float>()[index];
    if (stats) {
      float* to = task_.stats + 2 * index;
      const float kept = m == kMinusInfinity ? 0.0f : to[1] + l * (m - by.largest);
      to[1] = kept * by.keep + (span.t + span.l * (span.m - by.largest)) * by.add;
      AddSink(span.sink, to);
    }
    m = by.largest;
    l = l * by.keep + span.l * by.add;
  }

  static void AddSink(float sink, float* to) {
    if (sink == kMinusInfinity) return;
    float lanes[kLanes] = {sink};
    if (*to != kMinusInfinity) Store(lanes, LogAddExp(Set(*to), Set(sink)));
    *to = lanes[0];
  }

  const AttentionPlan& plan_;
  const AttentionTask& task_;
  TileShape shape_;
  TileScratch tile_;
  bool stats_ = false;  // the tile has a row whose statistics are wanted
#if defined(__AVX512BF16__)
  Bf16Spans bf16_;
#endif
};

}  // namespace

AttentionJob::AttentionJob(const AttentionPlan& plan, const AttentionTask& task, OpContext& context)
    : plan_(plan), task_(task), context_(context) {
  const std::int64_t partial = PartialFloats(PaddedDim(task.pages.head_dim)) * 4;
  const std::int64_t counters = (std::int64_t{plan.tile_count} * 4 + 63) / 64 * 64;
  std::byte* shared =
      context.scratch.Shared(static_cast<std::size_t>(counters + plan.partials * partial));
  units_left_ = reinterpret_cast<std::int32_t*>(shared);
  partials_ = reinterpret_cast<float*>(shared + counters);
  for (int i = 0; i < plan.tile_count; ++i) units_left_[i] = plan.tiles[i].units;
}

void AttentionJob::Run(std::int64_t u, int worker) const {
  TileRunner runner(plan_, task_, context_.scratch.Worker(worker, TileRunner::Bytes(plan_, task_)));
  const TileScope tiles(task_.bf16);
  const Unit& unit = plan_.units[u];
  const Tile& tile = plan_.tiles[unit.tile];
  if (tile.units == 1) return runner.RunWhole(tile);
  float* mine = partials_ + tile.first_partial * PartialFloats(PaddedDim(task_.pages.head_dim));
  runner.RunUnit(tile, unit, mine);
  if (__atomic_sub_fetch(&units_left_[unit.tile], 1, __ATOMIC_ACQ_REL) == 0) {
    runner.MergeUnits(tile, mine);
  }
}

}  // namespace metattn::cpu::METATTN_ISA
