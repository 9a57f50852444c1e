// The meta-controller: scalars, hidden layer, concentrations, uncertainty, scores and the decision
// of each row and KV head, everything in double.
#include <algorithm>
#include <array>
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

constexpr auto kFull = static_cast<std::uint8_t>(Mechanism::kFull);

struct Outcome {
  std::uint8_t decision = kFull;
  double uncertainty = 1.0;
  double margin = 0.0;
  std::array<double, kMechanisms> weights = {1.0, 0.0, 0.0};
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

// s_h of ControlFeatures.
std::vector<double> RetrofitScalars(const ControlArgs& args, std::int64_t row, int head) {
  std::vector<double> s = {std::log(Context(args, row))};
  for (int i = 0; i < args.group; ++i) {
    const std::int64_t index = (row * args.heads + head) * args.group + i;
    const float* stats = args.near_stats.As<float>() + index * 2;
    const double lse =
        args.near.m.As<float>()[index] + std::log(double{args.near.l.As<float>()[index]});
    s.push_back(lse);
    s.push_back(stats[0] - lse);
    s.push_back(lse - stats[1]);
    s.push_back(args.lse_far.As<float>()[index] - lse);
  }
  return s;
}

std::vector<double> PaperScalars(const ControlArgs& args, std::int64_t row) {
  const float* x = args.x.As<float>() + row * args.dim;
  double squares = 0;
  for (std::int64_t i = 0; i < args.dim; ++i) squares += double{x[i]} * x[i];
  return {std::sqrt(squares / static_cast<double>(args.dim)),
          std::min((Context(args, row) - 1) / args.last_position, 1.0)};
}

// u of one row and KV head. Infinite differences count as the largest finite ones, so that a scale
// of 0 leaves a scalar out even where it is -inf (the sinks' share without sinks).
std::vector<double> Scalars(const ControlArgs& args, std::int64_t row, int head) {
  std::vector<double> u;
  if (args.features == ControlFeatures::kRetrofit) u = RetrofitScalars(args, row, head);
  if (args.features == ControlFeatures::kLength) u = {std::log(Context(args, row))};
  if (args.features == ControlFeatures::kPaper) u = PaperScalars(args, row);
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
  const float* scalars = args.scalars.As<float>() + head * n * width;
  std::vector<double> hidden;
  for (std::int64_t r = 0; r < width; ++r) {
    double sum = double{projected[r]} + args.bias.As<float>()[head * width + r];
    for (std::int64_t i = 0; i < n; ++i) sum += scalars[i * width + r] * u[i];
    hidden.push_back(GeluTanh(sum));
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

// c_k.
std::array<double, kMechanisms> Costs(const ControlArgs& args, std::int64_t row) {
  const double n = Context(args, row);
  const double near = n - std::max(0, args.rows.far_end.As<std::int32_t>()[row] - args.rows.sinks);
  const double linear = args.rows.linear_all ? args.state_tokens : near + args.state_tokens;
  return {1.0, std::min(1.0, linear / n), near / n};
}

// softmax(score); the largest finite numbers stand for infinite scores.
std::array<double, kMechanisms> Softmax(std::span<const double> score) {
  constexpr double kLargest = std::numeric_limits<double>::max() / 4;
  std::array<double, kMechanisms> weights{};
  double sum = 0;
  const double largest =
      std::clamp(*std::max_element(score.begin(), score.end()), -kLargest, kLargest);
  for (std::size_t k = 0; k < weights.size(); ++k) {
    weights[k] = std::exp(std::clamp(score[k], -kLargest, kLargest) - largest);
    sum += weights[k];
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

Outcome Decide(const ControlArgs& args, std::int64_t row, int head) {
  const std::vector<double> log_alpha = LogShares(args, Outputs(args, row, head));
  const std::array<double, kMechanisms> cost = Costs(args, row);
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
  outcome.weights = Softmax(score);
  // The gate compares what is stored.
  const float eta = args.eta.As<float>()[row];
  const bool certain = eta >= 1 || static_cast<float>(outcome.uncertainty) < eta;
  if (certain) outcome.decision = static_cast<std::uint8_t>(best);
  if (!certain && args.uncertain == UncertainPolicy::kMixture) outcome.decision = kMixture;
  return outcome;
}

}  // namespace

void RefKernels::Control(const ControlArgs& args, Stream&) {
  CheckArgs(args);
  const auto* far_end = args.rows.far_end.As<std::int32_t>();
  const auto* route = args.route.As<std::uint8_t>();
  for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
    const bool eligible = args.rows.Eligible(far_end[t]);
    for (int h = 0; h < args.heads; ++h) {
      const std::int64_t index = t * args.heads + h;
      Outcome outcome = {static_cast<std::uint8_t>(Mechanism::kLocal), 0, 0, {}};
      if (eligible && route[t] < kRouted) outcome.decision = route[t];
      if (eligible && route[t] >= kRouted) outcome = Decide(args, t, h);
      args.decisions.As<std::uint8_t>()[index] = outcome.decision;
      args.uncertainty.As<float>()[index] = static_cast<float>(outcome.uncertainty);
      args.margin.As<float>()[index] = static_cast<float>(outcome.margin);
      for (int k = 0; args.weights && k < kMechanisms; ++k) {
        args.weights.As<float>()[index * kMechanisms + k] =
            static_cast<float>(outcome.weights[static_cast<std::size_t>(k)]);
      }
    }
  }
}

}  // namespace metattn::ref
