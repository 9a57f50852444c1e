// The meta-controller: scalars, hidden layer, concentrations, uncertainty, scores and the decision
// of each row and KV head, everything in double.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/check_args.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/types.h"

namespace metattn::ref {
namespace {

constexpr double kScalarLimit = 8.0;

struct Outcome {
  Mechanism decision = Mechanism::kFull;
  double uncertainty = 1.0;
  double margin = 0.0;
};

double GeluTanh(double x) {
  return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x)));
}

double Dot(const float* weights, std::span<const double> values) {
  double sum = 0;
  for (std::size_t i = 0; i < values.size(); ++i) sum += weights[i] * values[i];
  return sum;
}

// n: tokens up to and with the row's.
double Context(const ControlArgs& args, std::int64_t row) {
  return 1.0 + args.rows.position.As<std::int32_t>()[row];
}

// u of one row and KV head. Infinite differences count as the largest finite ones, so that a scale
// of 0 leaves a scalar out even where it is -inf (the sinks' share without sinks).
std::vector<double> Scalars(const ControlArgs& args, std::int64_t row, int head) {
  std::vector<double> u;
  u.push_back(std::log(Context(args, row)));
  for (int i = 0; i < args.group; ++i) {
    const std::int64_t index = (row * args.heads + head) * args.group + i;
    const float* stats = args.near_stats.As<float>() + index * 2;
    const double lse =
        args.near.m.As<float>()[index] + std::log(double{args.near.l.As<float>()[index]});
    u.push_back(lse);
    u.push_back(stats[0] - lse);
    u.push_back(lse - stats[1]);
    u.push_back(args.lse_far.As<float>()[index] - lse);
  }
  const auto n = static_cast<std::int64_t>(u.size());
  const float* mean = args.scalar_mean.As<float>() + head * n;
  const float* scale = args.scalar_scale.As<float>() + head * n;
  constexpr double kLargest = std::numeric_limits<double>::max();
  for (std::int64_t i = 0; i < n; ++i) {
    u[i] = std::clamp(u[i] - mean[i], -kLargest, kLargest) * scale[i];
    u[i] = std::clamp(u[i], -kScalarLimit, kScalarLimit);  // NaN stays NaN
  }
  return u;
}

// e: the three outputs of one row and KV head.
std::vector<double> Outputs(const ControlArgs& args, std::int64_t row, int head) {
  const std::vector<double> u = Scalars(args, row, head);
  const auto n = static_cast<std::int64_t>(u.size());
  const std::int64_t width = args.width;
  const float* projected = args.projected.As<float>() + row * (width + 3 * args.heads);
  std::vector<double> hidden;
  for (std::int64_t r = head * width; r < (head + 1) * width; ++r) {
    hidden.push_back(GeluTanh(projected[r - head * width] +
                              Dot(args.scalars.As<float>() + r * n, u) + args.bias.As<float>()[r]));
  }
  std::vector<double> e;
  for (std::int64_t k = head * 3; k < head * 3 + 3; ++k) {
    e.push_back(Dot(args.out.As<float>() + k * width, hidden) + args.out_bias.As<float>()[k] +
                projected[width + k] + Dot(args.scalars_skip.As<float>() + k * n, u));
  }
  return e;
}

// log alpha_k.
std::vector<double> LogShares(const ControlArgs& args, std::vector<double> e) {
  if (args.link == ControllerLink::kSoftplus) {
    for (double& value : e) {
      value =
          std::log(std::max(value, 0.0) + std::log1p(std::exp(-std::abs(value))) + args.epsilon);
    }
  } else {
    for (double& value : e) value /= args.temperature;
  }
  const double largest = *std::max_element(e.begin(), e.end());
  double sum = 0;
  for (const double value : e) sum += std::exp(value - largest);
  for (double& value : e) value -= largest + std::log(sum);
  return e;
}

Outcome Decide(const ControlArgs& args, std::int64_t row, int head) {
  const std::vector<double> log_alpha = LogShares(args, Outputs(args, row, head));
  const double n = Context(args, row);
  const double near = n - args.rows.far_end.As<std::int32_t>()[row] + args.rows.sinks;
  const double cost[] = {1.0, std::min(1.0, (near + args.state_tokens) / n), near / n};
  const float* offset = args.offset.As<float>() + head * 3;
  double entropy = 0, score[kMechanisms];
  bool defined = !std::isnan(args.eta.As<float>()[row]);
  for (int k = 0; k < kMechanisms; ++k) {
    const double alpha = std::exp(log_alpha[k]);
    if (alpha != 0) entropy -= alpha * log_alpha[k];
    score[k] = log_alpha[k] + offset[k] - args.cost_weight.As<float>()[row] * cost[k];
    defined = defined && !std::isnan(score[k]);
  }
  if (!defined) return {};
  Outcome outcome;
  int best = 0;
  for (int k = 1; k < kMechanisms; ++k) best = score[k] > score[best] ? k : best;
  const double second = std::max(score[best == 0 ? 1 : 0], score[best == 2 ? 1 : 2]);
  outcome.margin = score[best] == second ? 0 : score[best] - second;
  outcome.uncertainty = std::clamp(entropy / std::log(3.0), 0.0, 1.0);
  // The gate compares what is stored.
  const bool certain = static_cast<float>(outcome.uncertainty) < args.eta.As<float>()[row];
  if (certain) outcome.decision = static_cast<Mechanism>(best);
  return outcome;
}

}  // namespace

void RefKernels::Control(const ControlArgs& args, Stream&) {
  CheckArgs(args);
  const auto* far_end = args.rows.far_end.As<std::int32_t>();
  const auto* route = args.route.As<std::uint8_t>();
  for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
    const bool eligible = far_end[t] > args.rows.sinks;
    for (int h = 0; h < args.heads; ++h) {
      const std::int64_t index = t * args.heads + h;
      Outcome outcome = {Mechanism::kLocal, 0, 0};
      if (eligible && route[t] < kRouted) outcome.decision = static_cast<Mechanism>(route[t]);
      if (eligible && route[t] >= kRouted) outcome = Decide(args, t, h);
      args.decisions.As<std::uint8_t>()[index] = static_cast<std::uint8_t>(outcome.decision);
      args.uncertainty.As<float>()[index] = static_cast<float>(outcome.uncertainty);
      args.margin.As<float>()[index] = static_cast<float>(outcome.margin);
    }
  }
}

}  // namespace metattn::ref
