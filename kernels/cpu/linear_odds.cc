// What linear attention would weigh: phi(q) of the eligible rows and log(phi(q) z).
//
// A unit is a query head and up to 64 rows: W is unpacked once for them, phi(q) z follows while
// phi(q) is in the first cache level. One row alone is multiplied straight from W as it lies, in
// the same order. In decode W comes from memory and the op hands over once.
#include <cstdint>

#include "kernels/cpu/feature_map.h"
#include "kernels/cpu/linear_jobs.h"
#include "kernels/cpu/linear_plan.h"
#include "kernels/cpu/linear_state.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/page_products.h"
#include "kernels/cpu/run_jobs.h"
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
    float weight[kRowsPerUnit];
    for (int i = 0; i < count; ++i) {
      const Place place = Locate(layer_, store_.plan, rows[i]);
      weight[i] = Weight(store_, place, q_head / layer_.group, Phi(rows[i], q_head));
    }
    const F32v gain = Set(args_.log_gain.As<float>()[q_head]);
    for (int i = 0; i < count; i += kLanes) {
      const int n = Smaller(kLanes, count - i);
      StoreN(weight + i, Add(Log(LoadN(weight + i, n)), gain), n);
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
    const auto* w = args_.w_q.As<std::uint32_t>();  // pairs
    if (hedgehog) w += std::int64_t{q_head} * layer_.d * layer_.d / 2;
#if defined(__AVX512BF16__)
    if (hedgehog && layer_.bf16 && count >= kBf16Rows) return MakeOnTiles(w, q_head, rows, count);
#endif
    if (hedgehog && count == 1 && layer_.d % kLanes == 0) {
      return OneQueryFeatures(w, Query(rows[0], q_head), layer_.d, y_, Phi(rows[0], q_head));
    }
    if (hedgehog) UnpackPairs(w, layer_.d, weights_);
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
  void MakeOnTiles(const std::uint32_t* w, int q_head, const std::int32_t* rows, int count) {
    const int d = layer_.d, rounded = (count + 15) / 16 * 16;
    for (int i = 0; i < rounded; ++i) {  // rows of padding repeat the last one
      NarrowRow(Query(rows[Smaller(i, count - 1)], q_head), d, narrow_ + i * d);
    }
    TileProduct({.a = narrow_,
                 .a_stride = d,
                 .b = w,
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
  float* weights_;         // [D, D] f32
  float* y_;               // [kRowsPerUnit, D]
  std::uint16_t* narrow_;  // [kRowsPerUnit, D] queries as bf16
};

}  // namespace

OddsJob::OddsJob(const LinearOddsArgs& args, OpContext& context)
    : args_(args),
      context_(context),
      layer_(args.shape, context),
      plan_(layer_.group == 0 || layer_.heads == 0 || args.shape.rows.tokens == 0
                ? LinearPlan{}
                : PlanRows(args.shape.rows, nullptr, 0)),
      store_(layer_, plan_, LinearScratch(context, KeyStore::Floats(layer_, plan_, false)), false) {
  const std::int64_t q_heads = std::int64_t{layer_.heads} * layer_.group;
  if (plan_.eligible_count < args.shape.rows.tokens) {
    auto* lse = args.lse_far.As<float>();
    const auto* far_end = args.shape.rows.far_end.As<std::int32_t>();
    for (std::int64_t t = 0; t < args.shape.rows.tokens; ++t) {
      if (args.shape.rows.Eligible(far_end[t])) continue;
      for (std::int64_t h = 0; h < q_heads; ++h) lse[t * q_heads + h] = kMinusInfinity;
    }
  }
  if (plan_.eligible_count == 0) return;
  MakeKeys(store_, context);
  units_ = q_heads * ((plan_.eligible_count + kRowsPerUnit - 1) / kRowsPerUnit);
}

void OddsJob::Run(std::int64_t u, int worker) const {
  const TileScope tiles(layer_.bf16);
  OddsUnit unit(args_, store_,
                reinterpret_cast<float*>(context_.scratch.Worker(worker, OddsUnit::Bytes(layer_))));
  const std::int64_t chunks = (plan_.eligible_count + kRowsPerUnit - 1) / kRowsPerUnit;
  const auto begin = static_cast<int>(u % chunks * kRowsPerUnit);
  unit.Run(static_cast<int>(u / chunks), plan_.eligible + begin,
           Smaller(kRowsPerUnit, plan_.eligible_count - begin));
}

void OddsJob::Finish() const {
  const int q_heads = layer_.heads * layer_.group;
  const auto* kappa = args_.kappa.As<float>();
  context_.pool.ParallelFor(
      plan_.eligible_count, kRowsPerUnit, [&](std::int64_t first, std::int64_t last, int) {
        for (; first < last; ++first) {
          const std::int64_t at = std::int64_t{plan_.eligible[first]} * q_heads;
          const float* m = args_.near.m.As<float>() + at;
          const float* l = args_.near.l.As<float>() + at;
          float* lse = args_.lse_far.As<float>() + at;
          for (int h = 0; h < q_heads; h += kLanes) {
            const int n = Smaller(kLanes, q_heads - h);
            const F32v near = Add(LoadN(m + h, n), Log(LoadN(l + h, n)));
            StoreN(lse + h, Fma(LoadN(kappa + h, n), near, LoadN(lse + h, n)), n);
          }
        }
      });
}

void LinearOdds(const LinearOddsArgs& args, OpContext& context) {
  const OddsJob job(args, context);
  RunJob(job, context);
  job.Finish();
}

}  // namespace metattn::cpu::METATTN_ISA
