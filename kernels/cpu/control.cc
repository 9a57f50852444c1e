// The meta-controller's decisions.
//
// A row: scalars of all its query heads side by side (a lane is a query head), then per KV head the
// hidden layer (a lane is a hidden unit, so that each scalar is one broadcast and R / lanes
// multiply-adds) and three dot products. Rows are taken kLanes (row, KV head) pairs at a time for
// what follows e: a lane is a pair there, so that the exponentials and logarithms of concentrations
// cost a fraction of a call each. One row of 3 KV heads, as in decode, is one such set.
//
// Each lane sees its own pair only and every sum has one order, so a decision does not depend on
// batch, chunks or threads.
#include <cstdint>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"
#include "kernels/cpu/vec_log.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr std::int64_t kChunkPairs = 64;  // of a chunk of rows: some 5 microseconds
constexpr float kScalarLimit = 8.0f;
constexpr float kLargest = 3.40282347e38f;
constexpr float kInvLog3 = 0.910239226f;

METATTN_INLINE std::int64_t Padded(std::int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

METATTN_INLINE F32v Clamp(F32v v, float limit) {  // NaN stays NaN
  return Min(Set(limit), Max(Set(-limit), v));
}

// x / (1 + exp(-2 y)) = x (1 + tanh y) / 2 with y = sqrt(2 / pi) (x + 0.044715 x^3).
METATTN_INLINE F32v GeluTanh(F32v x) {
  const F32v inner =
      Mul(x, Fma(Mul(x, x), Set(-2.0f * 0.7978845608f * 0.044715f), Set(-2.0f * 0.7978845608f)));
  return Div(x, Add(Set(1.0f), Exp(inner)));
}

struct Sizes {
  std::int64_t scalars;         // N
  std::int64_t padded_scalars;  // a head's scalars in scratch
  std::int64_t padded_width;    // R in scratch
};

// e and what the decision needs beside it of up to kLanes (row, KV head) pairs.
struct Pairs {
  float e[kMechanisms][kLanes] = {};
  float prior[kMechanisms][kLanes] = {};  // offset - lambda c
  float eta[kLanes] = {};
  std::int64_t index[kLanes];  // row * H + head
  int count = 0;
};

class Controller {
 public:
  Controller(const ControlArgs& args, const Sizes& sizes, float* scratch)
      : args_(args),
        sizes_(sizes),
        u_(scratch),
        hidden_(scratch + args.heads * sizes.padded_scalars) {}

  static std::int64_t ScratchFloats(const ControlArgs& args, const Sizes& sizes) {
    return args.heads * (sizes.padded_scalars + sizes.padded_width);
  }

  void Run(std::int64_t begin, std::int64_t end) {
    const auto* far_end = args_.rows.far_end.As<std::int32_t>();
    const auto* route = args_.route.As<std::uint8_t>();
    for (std::int64_t t = begin; t < end; ++t) {
      const bool eligible = args_.rows.Eligible(far_end[t]);
      if (eligible && route[t] >= kRouted) {
        Row(t);
        continue;
      }
      for (std::int64_t i = t * args_.heads; i < (t + 1) * args_.heads; ++i) {
        Write(i, eligible ? route[t] : static_cast<std::uint8_t>(Mechanism::kLocal), 0.0f, 0.0f);
        WriteWeights(i, 0.0f, 0.0f, 0.0f);
      }
    }
    Flush();
  }

 private:
  void Write(std::int64_t index, std::uint8_t decision, float uncertainty, float margin) {
    args_.decisions.As<std::uint8_t>()[index] = decision;
    args_.uncertainty.As<float>()[index] = uncertainty;
    args_.margin.As<float>()[index] = margin;
  }

  void WriteWeights(std::int64_t index, float full, float linear, float local) {
    if (!args_.weights) return;
    float* to = args_.weights.As<float>() + index * kMechanisms;
    to[0] = full;
    to[1] = linear;
    to[2] = local;
  }

  void Row(std::int64_t t) {
    Scalars(t);
    Standardise();
    Hidden(t);
    const std::int32_t position = args_.rows.position.As<std::int32_t>()[t];
    const std::int32_t far = args_.rows.far_end.As<std::int32_t>()[t] - args_.rows.sinks;
    const float n = static_cast<float>(position) + 1.0f;
    const auto near = static_cast<float>(position + 1 - Larger(0, far));
    const float read = args_.rows.linear_all ? args_.state_tokens : near + args_.state_tokens;
    const float cost[] = {1.0f, Smaller(1.0f, read / n), near / n};
    for (int h = 0; h < args_.heads; ++h) {
      const int lane = pairs_.count;
      Outputs(t, h, lane);
      for (int k = 0; k < kMechanisms; ++k) {
        pairs_.prior[k][lane] = args_.offset.As<float>()[h * kMechanisms + k] -
                                args_.cost_weight.As<float>()[t] * cost[k];
      }
      pairs_.eta[lane] = args_.eta.As<float>()[t];
      pairs_.index[lane] = t * args_.heads + h;
      if (++pairs_.count == kLanes) Flush();
    }
  }

  // s of every KV head, where u will be.
  void Scalars(std::int64_t t) {
    if (args_.features == ControlFeatures::kRetrofit) return RetrofitScalars(t);
    float s[2] = {};
    const auto position = static_cast<float>(args_.rows.position.As<std::int32_t>()[t]);
    if (args_.features == ControlFeatures::kLength) {
      float log_n[kLanes];
      Store(log_n, Log(Set(position + 1.0f)));
      s[0] = log_n[0];
    } else {
      s[0] = __builtin_sqrtf(SumOfSquares(args_.x.As<float>() + t * args_.dim) /
                             static_cast<float>(args_.dim));
      s[1] = Smaller(1.0f, position / static_cast<float>(args_.last_position));
    }
    for (int h = 0; h < args_.heads; ++h) {
      for (std::int64_t j = 0; j < sizes_.scalars; ++j) u_[h * sizes_.padded_scalars + j] = s[j];
    }
  }

  float SumOfSquares(const float* x) const {
    F32v sums[2] = {Zero(), Zero()};
    for (std::int64_t i = 0, turn = 0; i < args_.dim; i += kLanes, turn ^= 1) {
      const F32v v = LoadN(x + i, static_cast<int>(Smaller<std::int64_t>(kLanes, args_.dim - i)));
      sums[turn] = Fma(v, v, sums[turn]);
    }
    return ReduceAdd(Add(sums[0], sums[1]));
  }

  void RetrofitScalars(std::int64_t t) {
    const int q_heads = args_.heads * args_.group;
    const float* m = args_.near.m.As<float>() + t * q_heads;
    const float* l = args_.near.l.As<float>() + t * q_heads;
    const float* far = args_.lse_far.As<float>() + t * q_heads;
    const float* stats = args_.near_stats.As<float>() + t * q_heads * 2;
    float log_n[kLanes], lse[kLanes], odds[kLanes];
    Store(log_n, Log(Set(static_cast<float>(args_.rows.position.As<std::int32_t>()[t]) + 1.0f)));
    for (int h = 0; h < args_.heads; ++h) u_[h * sizes_.padded_scalars] = log_n[0];
    for (int first = 0; first < q_heads; first += kLanes) {
      const int count = Smaller(kLanes, q_heads - first);
      const F32v sum = Add(LoadN(m + first, count), Log(LoadN(l + first, count)));
      Store(lse, sum);
      Store(odds, Sub(LoadN(far + first, count), sum));
      int h = first / args_.group, i = first % args_.group;
      for (int lane = 0; lane < count; ++lane) {
        float* to = u_ + h * sizes_.padded_scalars + 1 + 4 * i;
        const float* from = stats + 2 * (first + lane);
        to[0] = lse[lane];
        to[1] = from[0] - lse[lane];
        to[2] = lse[lane] - from[1];
        to[3] = odds[lane];
        if (++i == args_.group) ++h, i = 0;
      }
    }
  }

  // s to u. Infinite differences count as the largest finite ones, so that a scale of 0 leaves a
  // scalar out even where it is -inf (the sinks' share without sinks).
  void Standardise() {
    const std::int64_t n = sizes_.scalars;
    for (int h = 0; h < args_.heads; ++h) {
      float* u = u_ + h * sizes_.padded_scalars;
      const float* mean = args_.scalar_mean.As<float>() + h * n;
      const float* scale = args_.scalar_scale.As<float>() + h * n;
      for (std::int64_t j = 0; j < n; j += kLanes) {
        const int count = static_cast<int>(Smaller<std::int64_t>(kLanes, n - j));
        const F32v off = Clamp(Sub(LoadN(u + j, count), LoadN(mean + j, count)), kLargest);
        Store(u + j, Clamp(Mul(off, LoadN(scale + j, count)), kScalarLimit));
      }
    }
  }

  // The hidden layers of all KV heads: first every sum, then every gelu, so that many of these long
  // chains are under way at once.
  void Hidden(std::int64_t t) {
    const std::int64_t width = args_.width, n = sizes_.scalars;
    const float* projected = args_.projected.As<float>() + t * (width + 3 * args_.heads);
    const float* weights = args_.scalars.As<float>();
    for (int h = 0; h < args_.heads; ++h, weights += n * width) {
      const float* bias = args_.bias.As<float>() + h * width;
      const float* u = u_ + h * sizes_.padded_scalars;
      for (std::int64_t r = 0; r < width; r += kLanes) {
        const int count = static_cast<int>(Smaller<std::int64_t>(kLanes, width - r));
        F32v sum = Add(LoadN(projected + r, count), LoadN(bias + r, count));
        for (std::int64_t j = 0; j < n; ++j) {
          sum = Fma(Set(u[j]), LoadN(weights + j * width + r, count), sum);
        }
        Store(hidden_ + h * sizes_.padded_width + r, sum);
      }
    }
    for (std::int64_t i = 0; i < args_.heads * sizes_.padded_width; i += kLanes) {
      Store(hidden_ + i, GeluTanh(Load(hidden_ + i)));
    }
  }

  // e of one pair, into its lane.
  void Outputs(std::int64_t t, int h, int lane) {
    const std::int64_t width = args_.width, n = sizes_.scalars;
    const float* projected = args_.projected.As<float>() + t * (width + 3 * args_.heads);
    const float* hidden_units = hidden_ + h * sizes_.padded_width;
    const float* out = args_.out.As<float>() + h * kMechanisms * width;
    const float* skip = args_.scalars_skip.As<float>() + h * kMechanisms * n;
    const float* u = u_ + h * sizes_.padded_scalars;
    F32v e[kMechanisms] = {Zero(), Zero(), Zero()};
    for (std::int64_t r = 0; r < width; r += kLanes) {
      const int count = static_cast<int>(Smaller<std::int64_t>(kLanes, width - r));
      const F32v hidden = Load(hidden_units + r);
      for (int k = 0; k < kMechanisms; ++k) {
        e[k] = Fma(hidden, LoadN(out + k * width + r, count), e[k]);
      }
    }
    for (std::int64_t j = 0; j < n; j += kLanes) {
      const int count = static_cast<int>(Smaller<std::int64_t>(kLanes, n - j));
      const F32v scalars = LoadN(u + j, count);
      for (int k = 0; k < kMechanisms; ++k) {
        e[k] = Fma(scalars, LoadN(skip + k * n + j, count), e[k]);
      }
    }
    for (int k = 0; k < kMechanisms; ++k) {
      pairs_.e[k][lane] = ReduceAdd(e[k]) + projected[width + h * kMechanisms + k] +
                          args_.out_bias.As<float>()[h * kMechanisms + k];
    }
  }

  // log alpha_k of all lanes.
  void LogShares(F32v (&log_alpha)[kMechanisms]) const {
    F32v sum = Zero();
    if (args_.link == ControllerLink::kSoftplus) {
      for (int k = 0; k < kMechanisms; ++k) {
        const F32v e = Load(pairs_.e[k]), positive = Max(Zero(), e);
        // -|e| as min(e, -e); NaN stays NaN.
        const F32v tail = Log1p(Exp(Min(Sub(Zero(), e), e)));
        const F32v beta = Add(Add(positive, tail), Set(args_.epsilon));
        sum = Add(sum, beta);
        log_alpha[k] = Log(beta);
      }
      sum = Log(sum);
    } else {
      const F32v temperature = Set(args_.temperature);
      for (int k = 0; k < kMechanisms; ++k) log_alpha[k] = Div(Load(pairs_.e[k]), temperature);
      const F32v largest = Max(Max(log_alpha[0], log_alpha[1]), log_alpha[2]);
      for (int k = 0; k < kMechanisms; ++k) {
        log_alpha[k] = Sub(log_alpha[k], largest);
        sum = Add(sum, Exp(log_alpha[k]));
      }
      sum = Log(sum);
    }
    for (int k = 0; k < kMechanisms; ++k) log_alpha[k] = Sub(log_alpha[k], sum);
  }

  // Decides the pairs collected.
  void Flush() {
    F32v log_alpha[kMechanisms];
    LogShares(log_alpha);
    F32v entropy = Zero();
    float score[kMechanisms][kLanes], weight[kMechanisms][kLanes], uncertainty[kLanes];
    F32v finite_score[kMechanisms];
    for (int k = 0; k < kMechanisms; ++k) {
      const F32v sum = Add(log_alpha[k], Load(pairs_.prior[k]));
      Store(score[k], sum);
      finite_score[k] = Clamp(sum, kLargest / 4);
      // alpha log alpha; a log of -inf (alpha = 0) adds 0. NaN stays NaN.
      const F32v finite = Max(Set(-kLargest), log_alpha[k]);
      entropy = Sub(entropy, Mul(Exp(log_alpha[k]), finite));
    }
    Store(uncertainty, Min(Set(1.0f), Max(Zero(), Mul(entropy, Set(kInvLog3)))));
    if (args_.weights) Softmax(finite_score, weight);
    for (int lane = 0; lane < pairs_.count; ++lane) {
      const std::int64_t index = pairs_.index[lane];
      const bool defined =
          Decide(lane, {score[0][lane], score[1][lane], score[2][lane]}, uncertainty[lane]);
      if (!args_.weights) continue;
      WriteWeights(index, defined ? weight[0][lane] : 1.0f, defined ? weight[1][lane] : 0.0f,
                   defined ? weight[2][lane] : 0.0f);
    }
    pairs_.count = 0;
  }

  static void Softmax(const F32v (&score)[kMechanisms], float (&weight)[kMechanisms][kLanes]) {
    const F32v largest = Max(Max(score[0], score[1]), score[2]);
    F32v of[kMechanisms], sum = Zero();
    for (int k = 0; k < kMechanisms; ++k) {
      of[k] = Exp(Sub(score[k], largest));
      sum = Add(sum, of[k]);
    }
    for (int k = 0; k < kMechanisms; ++k) Store(weight[k], Div(of[k], sum));
  }

  struct Scores {
    float of[kMechanisms];
  };

  // False: NaN, everything is written but the weights.
  bool Decide(int lane, const Scores& scores, float uncertainty) {
    const float* s = scores.of;
    const std::int64_t index = pairs_.index[lane];
    const float eta = pairs_.eta[lane];
    constexpr auto kFull = static_cast<std::uint8_t>(Mechanism::kFull);
    if (s[0] != s[0] || s[1] != s[1] || s[2] != s[2] || eta != eta) {
      Write(index, kFull, 1.0f, 0.0f);
      return false;
    }
    int best = s[1] > s[0] ? 1 : 0;
    best = s[2] > s[best] ? 2 : best;
    const float second = Larger(s[best == 0 ? 1 : 0], s[best == 2 ? 1 : 2]);
    const bool certain = eta >= 1.0f || uncertainty < eta;
    const std::uint8_t other = args_.uncertain == UncertainPolicy::kMixture ? kMixture : kFull;
    Write(index, certain ? static_cast<std::uint8_t>(best) : other, uncertainty,
          s[best] == second ? 0.0f : s[best] - second);
    return true;
  }

  const ControlArgs& args_;
  const Sizes& sizes_;
  float* const u_;       // [H, padded N]
  float* const hidden_;  // [H, padded R]
  Pairs pairs_;
};

}  // namespace

void Control(const ControlArgs& args, OpContext& context) {
  if (args.rows.tokens == 0 || args.heads == 0) return;
  const std::int64_t scalars = ControlScalars(args.features, args.group);
  const Sizes sizes = {scalars, Padded(scalars), Padded(args.width)};
  const auto bytes =
      static_cast<std::size_t>(Controller::ScratchFloats(args, sizes)) * sizeof(float);
  const std::int64_t chunk = kChunkPairs / args.heads + 1;
  context.pool.ParallelFor(
      args.rows.tokens, chunk, [&](std::int64_t begin, std::int64_t end, int worker) {
        auto* scratch = reinterpret_cast<float*>(context.scratch.Worker(worker, bytes));
        Controller(args, sizes, scratch).Run(begin, end);
      });
}

}  // namespace metattn::cpu::METATTN_ISA
