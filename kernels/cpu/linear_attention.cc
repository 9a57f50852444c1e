// Linear attention: states brought forward, and their merge into P0. The odds: linear_odds.cc.
//
// An op first makes the features of the keys it adds, per (block, KV head), with the sums that z
// needs; then z before each block is a running sum. After that rows need no order:
// states that take blocks do so first, S += phi(K)^T V, and leave a copy for every group of rows
// that stands between two blocks; a unit is a group, a KV head and, where the threads would not
// share evenly, a part of the columns. Every column of S and of a value is one chain in token and
// feature order, so neither the cut nor the steps show in a bit. In decode no keys are added and
// FarLinear hands over once.
#include <cstdint>

#include "kernels/cpu/feature_map.h"
#include "kernels/cpu/linear_jobs.h"
#include "kernels/cpu/linear_plan.h"
#include "kernels/cpu/linear_state.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/page_products.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/row_products.h"
#include "kernels/cpu/run_jobs.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kQueries = 64;                  // query vectors of FarLinear at a time on tiles
constexpr std::int64_t kWaveBytes = 2 << 20;  // features of keys that LinearAbsorb makes at a time

// Adds the plan's blocks to the states; features are made and kept for the whole plan.
void AddBlocks(const KeyStore& store, OpContext& context) {
  const Layer& layer = store.layer;
  const std::int64_t shards = std::int64_t{store.plan.path_count} * layer.heads;
  const int parts = StateParts(layer, shards, context.pool.threads());
  const auto bytes = static_cast<std::size_t>(std::int64_t{layer.features} * layer.padded * 4);
  context.pool.ParallelFor(
      shards * parts, 1, [&](std::int64_t first, std::int64_t last, int worker) {
        const TileScope tiles(layer.bf16);
        auto* scratch = reinterpret_cast<float*>(context.scratch.Worker(worker, bytes));
        for (std::int64_t unit = first; unit < last; ++unit) {
          const int part = static_cast<int>(unit % parts);
          const int head = static_cast<int>(unit / parts % layer.heads);
          const StatePath& path = store.plan.paths[unit / parts / layer.heads];
          StatePart state(layer, path, head, PartBegin(layer, part, parts),
                          PartBegin(layer, part + 1, parts), scratch);
          for (int i = path.first_key; i < path.first_key + path.taken; ++i) {
            state.Add(store, i);
          }
          state.Save();
          if (part == 0) CopyZ(store, path, head, path.taken);
        }
      });
}

}  // namespace

// Rows of one group of a path, for one KV head and a part of the columns.
class FarUnit {
 public:
  FarUnit(const FarLinearJob& job, float* scratch)
      : args_(job.args_), store_(job.store_), layer_(job.layer_), job_(job), state_(scratch) {
    const std::int64_t cells = std::int64_t{layer_.features} * layer_.padded;
    values_ = state_ + cells;
    similarity_ = values_ + std::int64_t{kQueries} * layer_.padded;
    keep_ = similarity_ + kQueryBlock * kBlockTokens;
    add_ = keep_ + Larger(kQueries, layer_.group);
    pairs_ = reinterpret_cast<std::uint32_t*>(add_ + Larger(kQueries, layer_.group));
    narrow_ = reinterpret_cast<std::uint16_t*>(pairs_ + cells / 2);
  }
  static std::size_t Bytes(const Layer& layer) {
    const std::int64_t cells = std::int64_t{layer.features} * layer.padded;
    const std::int64_t floats = cells + kQueries * layer.padded + kQueryBlock * kBlockTokens +
                                2 * Larger(kQueries, layer.group);
    return static_cast<std::size_t>(floats * 4 + cells * 2 + kQueries * layer.features * 2);
  }

  void Run(int group, int head, int begin, int end) {
    const std::int32_t index = store_.plan.path_of_group[group];
    const StatePath& path = store_.plan.paths[index];
    const int taken = group - path.first_group;
    const std::int32_t* bounds =
        store_.plan.listed + std::int64_t{head} * (store_.plan.path_count + 1) + index;
    begin_ = begin;
    end_ = end;
    int entry = bounds[0], last = bounds[1];
    if (path.taken > 0) {
      entry = FirstEntry(head, bounds[0], bounds[1], taken);
      last = FirstEntry(head, entry, bounds[1], taken + 1);
    }
    if (entry == last) return;
    if (path.taken > 0) {
      const float* copy = job_.Copy(path, taken, head) + begin;
      RunRows({copy, layer_.padded, layer_.features, end - begin}, head, entry, last);
    } else {
      const StatePart state(layer_, path, head, begin, end, state_);
      RunRows(state.columns(), head, entry, last);
    }
  }

 private:
  std::int32_t RowOf(int head, int entry) const {
    return args_.list.rows.As<std::int32_t>()[head * args_.list.capacity + entry];
  }
  Place PlaceOf(int head, int entry) const {
    return Locate(layer_, store_.plan, RowOf(head, entry));
  }
  // The first of the listed rows [entry, last), in order, that stands behind `taken` blocks.
  int FirstEntry(int head, int entry, int last, int taken) const {
    while (entry < last) {
      const int middle = entry + (last - entry) / 2;
      if (PlaceOf(head, middle).taken < taken) {
        entry = middle + 1;
      } else {
        last = middle;
      }
    }
    return entry;
  }

  // Listed rows [entry, last), which read the state `columns`.
  void RunRows(const Columns& columns, int head, int entry, int last) {
    const bool tiles = layer_.bf16 && (last - entry) * layer_.group >= kBf16Rows;
#if defined(__AVX512BF16__)
    for (int f = 0; tiles && f < layer_.features; f += 2) {
      const float* row = columns.b + f * columns.stride;
      NarrowPair(row, row + columns.stride, columns.columns, pairs_ + f / 2 * columns.columns);
    }
#endif
    const int at_once = Larger(1, kQueries / Larger(1, layer_.group));
    for (; entry < last; entry += at_once) {
      const int rows = Smaller(at_once, last - entry);
      for (int i = 0; i < rows; ++i) MakeFactors(head, entry + i, i * layer_.group);
      const int queries = rows * layer_.group, step = tiles ? kQueries : kQueryBlock;
      for (int first = 0; first < queries; first += step) {
        const int n = Smaller(step, queries - first);
        if (tiles) {
          RunOnTiles(head, entry, first, n);
          continue;
        }
        const float* phi[kQueryBlock];
        for (int i = 0; i < n; ++i) phi[i] = Phi(head, entry, first + i);
        Product(phi, n, columns, values_, layer_.padded);
        Finish(head, entry, first, n, values_);
      }
    }
  }

  // Queries [first, first + n) of the rows from `entry` on; pairs_ holds the state.
  void RunOnTiles([[maybe_unused]] int head, [[maybe_unused]] int entry, [[maybe_unused]] int first,
                  [[maybe_unused]] int n) {
#if defined(__AVX512BF16__)
    const int rounded = (n + 15) / 16 * 16;
    for (int i = 0; i < rounded; ++i) {  // rows of padding repeat the last one
      NarrowRow(Phi(head, entry, first + Smaller(i, n - 1)), layer_.features,
                narrow_ + i * layer_.features);
    }
    TileProduct({.a = narrow_,
                 .a_stride = layer_.features,
                 .b = pairs_,
                 .b_stride = end_ - begin_,
                 .c = values_,
                 .c_stride = layer_.padded,
                 .rows = rounded,
                 .columns = end_ - begin_,
                 .depth = layer_.features,
                 .add = false});
    for (int i = 0; i < n; i += kQueryBlock) {
      Finish(head, entry, first + i, Smaller(kQueryBlock, n - i), values_ + i * layer_.padded);
    }
#endif
  }

  // Queries [first, first + n), n <= kQueryBlock: keys beside the state, then the merge.
  void Finish(int head, int entry, int first, int n, float* values) {
    if (store_.plan.tail_count > 0) AddTail(head, entry, first, n, values);
    for (int i = 0; i < n; ++i) {
      MergeQuery(head, entry, first + i, values + i * layer_.padded);
    }
  }

  // Factors of a listed row, from `at` on; its new m and l, which every part finds, wait for the
  // last to have read the old ones.
  void MakeFactors(int head, int entry, int at) {
    const Place place = PlaceOf(head, entry);
    const std::int64_t row = RowOf(head, entry);
    const std::int64_t index = (row * layer_.heads + head) * layer_.group;  // of no query, perhaps
    const float* phi_q = args_.phi_q.As<float>() + index * layer_.features;
    const FarLinearJob::Sums after = job_.After(head, entry);
    for (int j = 0; j < layer_.group; j += kLanes) {
      const int n = Smaller(kLanes, layer_.group - j);
      float weight[kLanes];
      std::uint64_t reads = 0;
      const float* lse_far = args_.lse_far.As<float>() + index + j;
      for (int i = 0; i < n; ++i) {
        weight[i] = Weight(store_, place, head, phi_q + (j + i) * layer_.features);
        reads |= std::uint64_t{lse_far[i] > kMinusInfinity} << i;  // else it weighs nothing
      }
      const F32v lse = LoadN(lse_far, n);
      const F32v near_m = LoadN(args_.partial.m.As<float>() + index + j, n);
      const F32v near_l = LoadN(args_.partial.l.As<float>() + index + j, n);
      const F32v largest = args_.alone ? lse : Max(near_m, lse);
      const F32v keep = args_.alone ? Zero() : Exp(Sub(near_m, largest));
      const F32v add = Exp(Sub(lse, largest));
      StoreN(keep_ + at + j, Keep(keep, reads, Set(1.0f)), n);
      StoreN(add_ + at + j, Keep(Div(add, LoadN(weight, n)), reads, Zero()), n);
      if (begin_ > 0) continue;
      StoreN(after.m + j, Keep(largest, reads, near_m), n);
      StoreN(after.l + j, Keep(Fma(near_l, keep, add), reads, near_l), n);
    }
  }

  const float* Phi(int head, int entry, int query) const {
    return args_.phi_q.As<float>() + Index(head, entry, query) * layer_.features;
  }

  // Place in [T, H*g] of a query of the rows from `entry` on.
  std::int64_t Index(int head, int entry, int query) const {
    const std::int64_t row = RowOf(head, entry + query / layer_.group);
    return (row * layer_.heads + head) * layer_.group + query % layer_.group;
  }

  // Keys beside the state: values += (phi(q) phi(K)^T) V.
  void AddTail(int head, int entry, int first, int n, float* values) {
    const float* phi[kQueryBlock];
    int from = kBlockTokens, to = 0, tail = 0;
    for (int i = 0; i < n; ++i) {
      phi[i] = Phi(head, entry, first + i);
      const Place place = PlaceOf(head, entry + (first + i) / layer_.group);
      if (place.first_key >= place.end_key) continue;
      from = place.first_key;
      to = Larger(to, place.end_key);
      tail = place.tail;
    }
    if (from >= to) return;
    Product(phi, n, {store_.Phi(tail, head), kBlockTokens, layer_.features, kBlockTokens},
            similarity_, kBlockTokens);
    for (int i = 0; i < n; ++i) {
      const int own = PlaceOf(head, entry + (first + i) / layer_.group).end_key;
      for (int t = Larger(from, own); t < to; ++t) similarity_[i * kBlockTokens + t] = 0.0f;
    }
    PagePart part = layer_.Values(store_.plan.keys[tail], head, begin_, end_);
    part.first = from;
    part.end = to;
    kValue[n - 1](part, similarity_, values);
  }

  void MergeQuery(int head, int entry, int query, const float* values) {
    float* o = args_.partial.o.As<float>() + Index(head, entry, query) * layer_.d;
    const F32v keep = Set(keep_[query]), add = Set(add_[query]);
    for (int i = begin_; i < end_; i += kLanes) {
      const int n = Larger(0, Smaller(kLanes, layer_.d - i));
      StoreN(o + i, Fma(Load(values + i - begin_), add, Mul(LoadN(o + i, n), keep)), n);
    }
  }

  const FarLinearArgs& args_;
  const KeyStore& store_;
  const Layer& layer_;
  const FarLinearJob& job_;
  int begin_ = 0, end_ = 0;  // the part's columns
  float* state_;             // [f, D]
  float* values_;            // [kQueries, D]
  float* similarity_;        // [kQueryBlock, 64]
  float* keep_;              // per query of the rows in hand: o = keep o + add (phi(q) S)
  float* add_;
  std::uint32_t* pairs_;   // [f / 2, columns] the state as pairs of bf16
  std::uint16_t* narrow_;  // [kQueries, f] phi(q) as bf16
};

float* FarLinearJob::Copy(const StatePath& path, int taken, int head) const {
  const std::int64_t at = std::int64_t{path.first_copy + taken} * layer_.heads + head;
  return copies_ + at * layer_.features * layer_.padded;
}

// Brings the states forward, but for z, which rows still need; leaves copies for the rows.
void FarLinearJob::AdvanceStates() const {
  if (plan_.copy_count == 0) return;
  const std::int64_t shards = std::int64_t{plan_.path_count} * layer_.heads;
  const int parts = StateParts(layer_, shards, context_.pool.threads());
  const auto bytes = static_cast<std::size_t>(std::int64_t{layer_.features} * layer_.padded * 4);
  context_.pool.ParallelFor(
      shards * parts, 1, [&](std::int64_t first, std::int64_t last, int worker) {
        const TileScope tiles(layer_.bf16);
        auto* scratch = reinterpret_cast<float*>(context_.scratch.Worker(worker, bytes));
        for (std::int64_t unit = first; unit < last; ++unit) {
          const int part = static_cast<int>(unit % parts);
          const int head = static_cast<int>(unit / parts % layer_.heads);
          const StatePath& path = plan_.paths[unit / parts / layer_.heads];
          if (path.taken == 0) continue;
          StatePart state(layer_, path, head, PartBegin(layer_, part, parts),
                          PartBegin(layer_, part + 1, parts), scratch);
          for (int i = 0; i < path.taken; ++i) {
            state.CopyTo(Copy(path, i, head));
            state.Add(store_, path.first_key + i);
          }
          state.CopyTo(Copy(path, path.taken, head));
          state.Save();
        }
      });
}

void LinearAbsorb(const LinearAbsorbArgs& args, OpContext& context) {
  const Layer layer(args.shape, context);
  if (layer.heads == 0) return;
  const std::int64_t block_bytes = layer.PhiFloats() * layer.heads * 4;
  const auto limit = static_cast<std::int32_t>(Larger<std::int64_t>(1, kWaveBytes / block_bytes));
  AbsorbCursor cursor;
  for (;;) {
    const LinearPlan plan = PlanAbsorb(args.shape.rows, limit, &cursor);
    if (plan.path_count == 0) return;
    const KeyStore store(layer, plan, LinearScratch(context, KeyStore::Floats(layer, plan, true)),
                         true);
    MakeKeys(store, context);
    AddBlocks(store, context);
  }
}

namespace {

std::int64_t LongestList(const WorkList& list, int heads) {
  std::int64_t entries = 0;
  for (int h = 0; h < heads; ++h) {
    entries = Larger<std::int64_t>(entries, list.counts.As<std::int32_t>()[h]);
  }
  return entries;
}

std::int64_t CopyFloats(const Layer& layer, const LinearPlan& plan) {
  return std::int64_t{plan.copy_count} * layer.heads * layer.features * layer.padded;
}

// Features of keys, copies of states, m and l of `queries`.
float* FarScratch(const Layer& layer, const LinearPlan& plan, std::int64_t queries,
                  OpContext& context) {
  return LinearScratch(context,
                       KeyStore::Floats(layer, plan, true) + CopyFloats(layer, plan) + 2 * queries);
}

}  // namespace

FarLinearJob::FarLinearJob(const FarLinearArgs& args, OpContext& context)
    : args_(args),
      context_(context),
      layer_(args.shape, context),
      plan_(layer_.heads == 0 || args.shape.rows.tokens == 0
                ? LinearPlan{}
                : PlanRows(args.shape.rows, &args.list, layer_.heads)),
      entries_(plan_.path_count == 0 ? 0 : LongestList(args.list, layer_.heads)),
      memory_(FarScratch(layer_, plan_, layer_.heads * entries_ * layer_.group, context)),
      store_(layer_, plan_, memory_, true),
      copies_(memory_ + KeyStore::Floats(layer_, plan_, true)) {
  if (plan_.path_count == 0) return;
  after_ = copies_ + CopyFloats(layer_, plan_);
  CutUnits();
  MakeKeys(store_, context);
  AdvanceStates();
}

// A unit is a group of rows and a listed head with all columns, because a state that is read from
// end to end comes in 1.6 times as fast as every second pair of its lines; only the few that are
// left over when the threads have taken equally many are cut into columns.
void FarLinearJob::CutUnits() {
  for (int h = 0; h < layer_.heads; ++h) {
    listed_heads_ += args_.list.counts.As<std::int32_t>()[h] > 0 ? 1 : 0;
  }
  const std::int64_t shards = std::int64_t{plan_.group_count} * listed_heads_;
  const int threads = context_.pool.threads();
  const std::int64_t left_over = shards < 4 * threads ? shards % threads : 0;
  whole_ = shards - left_over;
  parts_ = StateParts(layer_, left_over, threads);
  units_ = whole_ + left_over * parts_;
}

int FarLinearJob::ListedHead(std::int64_t i) const {
  int head = 0;
  for (;; ++head) {
    if (args_.list.counts.As<std::int32_t>()[head] > 0 && i-- == 0) return head;
  }
}

FarLinearJob::Sums FarLinearJob::After(int head, int entry) const {
  float* const m = after_ + (head * entries_ + entry) * layer_.group;
  return {m, m + layer_.heads * entries_ * layer_.group};
}

void FarLinearJob::Run(std::int64_t u, int worker) const {
  const TileScope tiles(layer_.bf16);
  FarUnit unit(*this,
               reinterpret_cast<float*>(context_.scratch.Worker(worker, FarUnit::Bytes(layer_))));
  const ListedUnit of = UnitOfLists(u, whole_, units_, context_.pool.threads());
  const int parts = of.second ? parts_ : 1, part = static_cast<int>(of.unit % parts);
  const std::int64_t shard = of.second ? whole_ + of.unit / parts : of.unit;
  unit.Run(static_cast<int>(shard / listed_heads_), ListedHead(shard % listed_heads_),
           PartBegin(layer_, part, parts), PartBegin(layer_, part + 1, parts));
}

void FarLinearJob::Finish() const {
  for (int p = 0; p < plan_.path_count; ++p) {
    const StatePath& path = plan_.paths[p];
    for (int h = 0; path.taken > 0 && h < layer_.heads; ++h) CopyZ(store_, path, h, path.taken);
  }
  if (plan_.path_count == 0) return;
  for (int h = 0; h < layer_.heads; ++h) {
    const auto* listed = args_.list.rows.As<std::int32_t>() + h * args_.list.capacity;
    for (int entry = 0; entry < args_.list.counts.As<std::int32_t>()[h]; ++entry) {
      const std::int64_t index = (std::int64_t{listed[entry]} * layer_.heads + h) * layer_.group;
      const Sums after = After(h, entry);
      for (int i = 0; i < layer_.group; ++i) {
        args_.partial.m.As<float>()[index + i] = after.m[i];
        args_.partial.l.As<float>()[index + i] = after.l[i];
      }
    }
  }
}

void FarLinear(const FarLinearArgs& args, OpContext& context) {
  const FarLinearJob job(args, context);
  RunJob(job, context);
  job.Finish();
}

}  // namespace metattn::cpu::METATTN_ISA
