// What linear attention would weigh: phi(q) of the eligible rows and log(phi(q) z).
//
// A unit is a query head and up to 64 rows: W is unpacked once for them, phi(q) z follows while
// phi(q) is in the first cache level. One row alone is multiplied straight from W as it lies, in
// the same order. In decode W comes from memory and the op hands over once.
#include <cstdint>

#include "kernels/cpu/feature_map.h"
#include "kernels/cpu/linear_plan.h"
#include "kernels/cpu/linear_state.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/page_products.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_log.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kRowsPerUnit = 64;

// Odds of some eligible rows for one query head.
class OddsUnit {
 public:
  OddsUnit(const LinearOddsArgs& args, const KeyStore& store, float* scratch)
      : args_(args), store_(store), layer_(store.layer), weights_(scratch) {
    y_ = weights_ + std::int64_t{layer_.padded} * layer_.padded;
    narrow_ = reinterpret_cast<std::uint16_t*>(y_ + std::int64_t{kRowsPerUnit} * layer_.padded);
  }
  static std::size_t Bytes(const Layer& layer) {
    const std::int64_t padded = layer.padded;
    return static_cast<std::size_t>((padded + kRowsPerUnit) * padded * 4 +
                                    kRowsPerUnit * padded * 2);
  }

  void Run(int q_head, const std::int32_t* rows, int count) {
    MakeFeatures(q_head, rows, count);
    const std::int64_t q_heads = std::int64_t{layer_.heads} * layer_.group;
    float weight[kRowsPerUnit], m[kRowsPerUnit], l[kRowsPerUnit];
    for (int i = 0; i < count; ++i) {
      const Place place = Locate(layer_, store_.plan, rows[i]);
      weight[i] = Weight(store_, place, q_head / layer_.group, Phi(rows[i], q_head));
      m[i] = args_.near.m.As<float>()[rows[i] * q_heads + q_head];
      l[i] = args_.near.l.As<float>()[rows[i] * q_heads + q_head];
    }
    const F32v gain = Set(args_.log_gain.As<float>()[q_head]);
    const F32v kappa = Set(args_.kappa.As<float>()[q_head]);
    for (int i = 0; i < count; i += kLanes) {
      const int n = Smaller(kLanes, count - i);
      const F32v near = Add(LoadN(m + i, n), Log(LoadN(l + i, n)));
      StoreN(weight + i, Fma(kappa, near, Add(Log(LoadN(weight + i, n)), gain)), n);
    }
    for (int i = 0; i < count; ++i) {
      args_.lse_far.As<float>()[rows[i] * q_heads + q_head] = weight[i];
    }
  }

 private:
  std::int64_t Index(std::int64_t row, int q_head) const {
    return row * layer_.heads * layer_.group + q_head;
  }
  const float* Query(std::int64_t row, int q_head) const {
    return args_.q.As<float>() + Index(row, q_head) * layer_.d;
  }
  float* Phi(std::int64_t row, int q_head) const {
    return args_.phi_q.As<float>() + Index(row, q_head) * layer_.features;
  }

  void MakeFeatures(int q_head, const std::int32_t* rows, int count) {
    const bool hedgehog = layer_.shape.map == FeatureMap::kHedgehog;
    const auto* w = args_.w_q.As<std::uint16_t>();
    if (hedgehog) w += std::int64_t{q_head} * layer_.d * layer_.d;
#if defined(__AVX512BF16__)
    if (hedgehog && layer_.bf16 && count >= kBf16Rows) return MakeOnTiles(w, q_head, rows, count);
#endif
    if (hedgehog && count == 1 && layer_.d % (2 * kLanes) == 0) {
      return OneQueryFeatures(w, Query(rows[0], q_head), layer_.d, y_, Phi(rows[0], q_head));
    }
    if (hedgehog) UnpackColumns(w, layer_.d, weights_);
    for (int first = 0; first < count; first += kQueryBlock) {
      const int n = Smaller(kQueryBlock, count - first);
      const float* q[kQueryBlock];
      float* phi[kQueryBlock];
      for (int i = 0; i < n; ++i) {
        q[i] = Query(rows[first + i], q_head);
        phi[i] = Phi(rows[first + i], q_head);
      }
      QueryFeatures({layer_.shape.map, layer_.d, weights_, y_}, q, n, phi);
    }
  }

#if defined(__AVX512BF16__)
  void MakeOnTiles(const std::uint16_t* w, int q_head, const std::int32_t* rows, int count) {
    auto* pairs = reinterpret_cast<std::uint32_t*>(weights_);
    TransposePairs(w, layer_.d, pairs);
    const int d = layer_.d, rounded = (count + 15) / 16 * 16;
    for (int i = 0; i < rounded; ++i) {  // rows of padding repeat the last one
      NarrowRow(Query(rows[Smaller(i, count - 1)], q_head), d, narrow_ + i * d);
    }
    TileProduct({.a = narrow_,
                 .a_stride = d,
                 .b = pairs,
                 .b_stride = d,
                 .c = y_,
                 .c_stride = d,
                 .rows = rounded,
                 .columns = d,
                 .depth = d,
                 .add = false});
    for (int i = 0; i < count; ++i) SoftmaxPair(y_ + i * d, d, Phi(rows[i], q_head));
  }
#endif

  const LinearOddsArgs& args_;
  const KeyStore& store_;
  const Layer& layer_;
  float* weights_;         // [D, D] f32, or as pairs of bf16
  float* y_;               // [kRowsPerUnit, D]
  std::uint16_t* narrow_;  // [kRowsPerUnit, D] queries as bf16
};

}  // namespace

void LinearOdds(const LinearOddsArgs& args, OpContext& context) {
  const Layer layer(args.shape, context);
  const std::int64_t q_heads = std::int64_t{layer.heads} * layer.group;
  if (q_heads == 0 || args.shape.rows.tokens == 0) return;
  const LinearPlan plan = PlanRows(args.shape.rows, nullptr, 0);
  if (plan.eligible_count < args.shape.rows.tokens) {
    auto* lse = args.lse_far.As<float>();
    const auto* far_end = args.shape.rows.far_end.As<std::int32_t>();
    for (std::int64_t t = 0; t < args.shape.rows.tokens; ++t) {
      if (args.shape.rows.Eligible(far_end[t])) continue;
      for (std::int64_t h = 0; h < q_heads; ++h) lse[t * q_heads + h] = kMinusInfinity;
    }
  }
  if (plan.eligible_count == 0) return;
  auto* memory = reinterpret_cast<float*>(
      context.scratch.Shared(static_cast<std::size_t>(KeyStore::Floats(layer, plan, false) * 4)));
  const KeyStore store(layer, plan, memory, false);
  MakeKeys(store, context);
  const std::int64_t chunks = (plan.eligible_count + kRowsPerUnit - 1) / kRowsPerUnit;
  const std::size_t bytes = OddsUnit::Bytes(layer);
  context.pool.ParallelFor(
      q_heads * chunks, 1, [&](std::int64_t first, std::int64_t last, int worker) {
        const TileScope tiles(layer.bf16);
        OddsUnit unit(args, store, reinterpret_cast<float*>(context.scratch.Worker(worker, bytes)));
        for (std::int64_t u = first; u < last; ++u) {
          const auto begin = static_cast<int>(u % chunks * kRowsPerUnit);
          unit.Run(static_cast<int>(u / chunks), plan.eligible + begin,
                   Smaller(kRowsPerUnit, plan.eligible_count - begin));
        }
      });
}

}  // namespace metattn::cpu::METATTN_ISA
