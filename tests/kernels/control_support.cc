#include "tests/kernels/control_support.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace metattn::testing {
namespace {

// Stated relative error of the backends' logarithm; of exp: kExp.
constexpr double kLog = 3e-7;
constexpr double kTiny = 1e-36;  // below it f32 loses bits

// A number and how far off its f32 evaluation may be: each operation carries the errors of its
// operands on and adds one rounding.
struct Approx {
  Approx(double v) : value(v) {}  // exact
  Approx(double v, double e) : value(v), error(e) {}
  double value = 0, error = 0;
};

Approx Rounded(double value, double error) {
  return {value, error + (std::abs(value) + error) * kF32};
}
Approx operator+(Approx a, Approx b) { return Rounded(a.value + b.value, a.error + b.error); }
Approx operator-(Approx a, Approx b) { return Rounded(a.value - b.value, a.error + b.error); }
Approx operator*(Approx a, Approx b) {
  return Rounded(a.value * b.value,
                 std::abs(a.value) * b.error + std::abs(b.value) * a.error + a.error * b.error);
}
Approx operator/(Approx a, Approx b) {
  const double q = a.value / b.value;
  return Rounded(q, (a.error + std::abs(q) * b.error) / (std::abs(b.value) - b.error));
}

// In any order: n - 1 roundings, each of at most the sum of magnitudes.
Approx Sum(const std::vector<Approx>& terms) {
  double value = 0, error = 0, magnitude = 0;
  for (const Approx& term : terms) {
    value += term.value;
    error += term.error;
    magnitude += std::abs(term.value) + term.error;
  }
  return {value, error + magnitude * static_cast<double>(terms.size()) * kF32};
}

Approx Exp(Approx x) {
  const double value = std::exp(x.value);
  return {value, value * (std::expm1(x.error) + kExp * (1 + x.error)) + kTiny};
}
Approx Log(Approx x) {
  const double value = std::log(x.value);
  return {value, -std::log1p(-x.error / x.value) + std::abs(value) * kLog};
}
Approx Largest(const std::vector<Approx>& of) {
  Approx largest = of[0];
  for (const Approx& x : of) {
    largest = {std::max(largest.value, x.value), std::max(largest.error, x.error)};
  }
  return largest;
}

Approx Clamp(Approx x) { return {std::clamp(x.value, -8.0, 8.0), x.error}; }

// Its slope is below 1.13. As x / (1 + exp(-2 y)): 5 roundings up to 2 y, each of which moves the
// result by its share of |2 y|; exp, a sum, a division; tanh in double for the expected value.
Approx GeluTanh(Approx x) {
  const double y = std::sqrt(2 / M_PI) * (x.value + 0.044715 * std::pow(x.value, 3));
  const double value = 0.5 * x.value * (1 + std::tanh(y));
  const double relative = kExp + (10 * std::abs(y) + 4) * kF32;
  return {value, 1.13 * x.error + std::abs(value) * relative + std::abs(x.value) * 1e-15};
}

// Its slope is at most 1; exp, log1p, a sum.
Approx Softplus(Approx x) {
  const double value = std::max(x.value, 0.0) + std::log1p(std::exp(-std::abs(x.value)));
  return {value, x.error + value * (kExp + kLog + 3 * kF32) + kTiny};
}

// |x| / sqrt(D) and the place in the longest context. sqrt halves a relative error and adds a
// rounding.
std::vector<Approx> PaperScalars(const ControlInputs& in, int row) {
  std::vector<Approx> squares;
  for (int i = row * in.dim; i < (row + 1) * in.dim; ++i) {
    squares.push_back(Approx(in.x[i]) * in.x[i]);
  }
  const Approx mean = Sum(squares) / in.dim;
  const double root = std::sqrt(mean.value);
  return {{root, mean.error / (2 * root) * 1.01 + root * kF32},
          {std::min(1.0, static_cast<double>(in.position[row]) / in.last_position), kF32}};
}

std::vector<Approx> Scalars(const ControlInputs& in, int row, int head) {
  std::vector<Approx> u = {Log(in.position[row] + 1.0)};
  if (in.features == ControlFeatures::kPaper) u = PaperScalars(in, row);
  for (int i = 0; in.features == ControlFeatures::kRetrofit && i < in.group; ++i) {
    const int index = (row * in.heads + head) * in.group + i;
    const Approx lse = in.near_m[index] + Log(double{in.near_l[index]});
    u.push_back(lse);
    u.push_back(in.near_stats[2 * index] - lse);
    u.push_back(lse - in.near_stats[2 * index + 1]);
    u.push_back(in.lse_far[index] - lse);
  }
  for (int j = 0; j < in.Scalars(); ++j) {
    const int at = head * in.Scalars() + j;
    u[j] = Clamp((u[j] - in.scalar_mean[at]) * in.scalar_scale[at]);
  }
  return u;
}

// e_k of the three mechanisms.
std::vector<Approx> Outputs(const ControlInputs& in, int row, int head) {
  const std::vector<Approx> u = Scalars(in, row, head);
  const float* projected = in.projected.data() + row * (in.width + 3 * in.heads);
  std::vector<Approx> hidden;
  for (int r = 0; r < in.width; ++r) {
    std::vector<Approx> terms = {projected[r], in.bias[head * in.width + r]};
    for (int j = 0; j < in.Scalars(); ++j) {
      terms.push_back(in.scalars[(head * in.Scalars() + j) * in.width + r] * u[j]);
    }
    hidden.push_back(GeluTanh(Sum(terms)));
  }
  std::vector<Approx> e;
  for (int k = head * 3; k < head * 3 + 3; ++k) {
    std::vector<Approx> terms = {in.out_bias[k], projected[in.width + k]};
    for (int r = 0; r < in.width; ++r) terms.push_back(in.out[k * in.width + r] * hidden[r]);
    for (int j = 0; j < in.Scalars(); ++j) {
      terms.push_back(in.scalars_skip[k * in.Scalars() + j] * u[j]);
    }
    e.push_back(Sum(terms));
  }
  return e;
}

std::vector<Approx> LogShares(const ControlInputs& in, std::vector<Approx> e) {
  if (in.link == ControllerLink::kSoftplus) {
    for (Approx& x : e) x = Softplus(x) + in.epsilon;
    const Approx log_sum = Log(Sum(e));
    for (Approx& x : e) x = Log(x) - log_sum;
    return e;
  }
  for (Approx& x : e) x = x / in.temperature;
  const Approx largest = Largest(e);
  for (Approx& x : e) x = x - largest;
  const Approx log_sum = Log(Sum({Exp(e[0]), Exp(e[1]), Exp(e[2])}));
  for (Approx& x : e) x = x - log_sum;
  return e;
}

template <typename T>
std::vector<T> Slice(const std::vector<T>& all, int tokens, int first, int count) {
  if (tokens == 0) return {};
  const auto width = static_cast<std::ptrdiff_t>(all.size()) / tokens;
  return {all.begin() + first * width, all.begin() + (first + count) * width};
}

}  // namespace

ControlInputs ControlInputs::Rows(int first, int count) const {
  ControlInputs part = *this;
  part.tokens = count;
  part.position = Slice(position, tokens, first, count);
  part.far_end = Slice(far_end, tokens, first, count);
  part.route = Slice(route, tokens, first, count);
  for (auto list : {&ControlInputs::projected, &ControlInputs::near_m, &ControlInputs::near_l,
                    &ControlInputs::near_stats, &ControlInputs::lse_far, &ControlInputs::x,
                    &ControlInputs::cost_weight, &ControlInputs::eta}) {
    part.*list = Slice(this->*list, tokens, first, count);
  }
  return part;
}

ControlInputs RandomControl(const ControlSizes& sizes, ControllerLink link, std::uint64_t seed,
                            ControlFeatures features) {
  ControlInputs in;
  static_cast<ControlSizes&>(in) = sizes;
  in.link = link;
  in.features = features;
  if (features == ControlFeatures::kPaper) {
    in.dim = 53;
    in.last_position = 6000;
    in.x = Randoms(in.tokens * in.dim, seed + 14);
    for (float& x : in.x) x = Bf16ToF32(F32ToBf16(x));  // as some backends take it
  }
  in.temperature = 0.7f;
  std::mt19937_64 engine(seed);
  auto pick = [&](std::initializer_list<float> of) { return of.begin()[engine() % of.size()]; };
  for (int t = 0; t < in.tokens; ++t) {
    const int position = static_cast<int>(engine() % 9000);
    in.position.push_back(position);
    in.far_end.push_back(std::max(0, position - 255) / kBlockTokens * kBlockTokens);
    in.route.push_back(engine() % 4 == 0 ? static_cast<std::uint8_t>(engine() % 3) : kRouted);
    in.cost_weight.push_back(pick({0.0f, 0.0f, 0.5f, 1.0f, 5.0f}));
    in.eta.push_back(pick({0.5f, 0.9f, 0.95f, 0.98f, 1.0f}));
  }
  const int q_rows = in.tokens * in.heads * in.group, n = in.Scalars();
  in.near_m = Randoms(q_rows, seed + 1, 6.0f);
  in.near_l = Randoms(q_rows, seed + 2, 40.0f);
  in.lse_far = Randoms(q_rows, seed + 3, 2.0f);
  in.near_stats = Randoms(q_rows * 2, seed + 4, 1.5f);
  for (int i = 0; i < q_rows; ++i) {
    in.near_l[i] = std::abs(in.near_l[i]) + 1.0f;
    const float lse = in.near_m[i] + std::log(in.near_l[i]);
    in.lse_far[i] += lse;
    in.near_stats[2 * i] = lse - std::abs(in.near_stats[2 * i]);
    in.near_stats[2 * i + 1] = in.near_m[i] - std::abs(in.near_stats[2 * i + 1]);
  }
  in.projected = Randoms(in.tokens * (in.width + 3 * in.heads), seed + 5);
  in.scalar_mean = Randoms(in.heads * n, seed + 6, 2.0f);
  in.scalar_scale = Randoms(in.heads * n, seed + 7, 1.5f);
  in.scalars = Randoms(in.heads * in.width * n, seed + 8, 0.3f);
  in.bias = Randoms(in.heads * in.width, seed + 9, 0.5f);
  in.out = Randoms(in.heads * 3 * in.width, seed + 10, 0.3f);
  in.out_bias = Randoms(in.heads * 3, seed + 11);
  in.scalars_skip = Randoms(in.heads * 3 * n, seed + 12, 0.1f);
  in.offset = Randoms(in.heads * 3, seed + 13, 0.3f);
  return in;
}

ControlOutputs RunControl(Rig& rig, const ControlInputs& in) {
  const auto pairs = static_cast<std::int64_t>(in.tokens) * in.heads;
  const View unused = rig.In(std::vector<std::int32_t>(static_cast<std::size_t>(in.tokens) + 1));
  const ControlArgs args{.rows = {.tokens = in.tokens,
                                  .sequences = 1,
                                  .position = rig.In(in.position),
                                  .sequence = unused,
                                  .row_begin = rig.In(std::vector<std::int32_t>{0, in.tokens}),
                                  .near_begin = unused,
                                  .far_end = rig.In(in.far_end),
                                  .table_begin = rig.In(std::vector<std::int32_t>{0, 1}),
                                  .blocks = unused,
                                  .sinks = in.sinks,
                                  .linear_all = in.linear_all},
                         .heads = in.heads,
                         .group = in.group,
                         .width = in.width,
                         .state_tokens = in.state_tokens,
                         .features = in.features,
                         .link = in.link,
                         .uncertain = in.uncertain,
                         .epsilon = in.epsilon,
                         .temperature = in.temperature,
                         .projected = rig.In(in.projected),
                         .near = {.m = rig.In(in.near_m), .l = rig.In(in.near_l)},
                         .near_stats = rig.In(in.near_stats),
                         .lse_far = rig.In(in.lse_far),
                         .x = rig.InActivations(in.x),
                         .dim = in.dim,
                         .last_position = in.last_position,
                         .scalar_mean = rig.In(in.scalar_mean),
                         .scalar_scale = rig.In(in.scalar_scale),
                         .scalars = rig.In(in.scalars),
                         .bias = rig.In(in.bias),
                         .out = rig.In(in.out),
                         .out_bias = rig.In(in.out_bias),
                         .scalars_skip = rig.In(in.scalars_skip),
                         .offset = rig.In(in.offset),
                         .route = rig.In(in.route),
                         .cost_weight = rig.In(in.cost_weight),
                         .eta = rig.In(in.eta),
                         .decisions = rig.Space(static_cast<std::size_t>(pairs)),
                         .uncertainty = rig.Floats(pairs),
                         .margin = rig.Floats(pairs),
                         .weights = rig.Floats(pairs * kMechanisms)};
  rig.kernels().Control(args, rig.stream());
  return {rig.Out<std::uint8_t>(args.decisions, pairs), rig.Out<float>(args.uncertainty, pairs),
          rig.Out<float>(args.margin, pairs), rig.Out<float>(args.weights, pairs * kMechanisms)};
}

namespace {

void ExpectWeights(const std::vector<Approx>& score, ExpectedDecision* expected) {
  const Approx largest = Largest(score);
  std::vector<Approx> terms;
  for (const Approx& s : score) terms.push_back(Exp(s - largest));
  const Approx sum = Sum(terms);
  for (int k = 0; k < kMechanisms; ++k) {
    const Approx weight = terms[k] / sum;
    expected->weights[k] = weight.value;
    expected->weights_bound[k] = weight.error + kTiny;
  }
}

}  // namespace

ExpectedDecision ExpectDecision(const ControlInputs& in, int row, int head) {
  const std::vector<Approx> log_alpha = LogShares(in, Outputs(in, row, head));
  const double n = in.position[row] + 1.0, near = n - std::max(0, in.far_end[row] - in.sinks);
  Approx linear = (Approx(in.linear_all ? 0 : near) + in.state_tokens) / n;
  if (linear.value >= 1) linear = {1.0, linear.error};
  const Approx costs[] = {1.0, linear, Approx(near) / n};
  std::vector<Approx> score, terms;
  double off = 0;
  for (int k = 0; k < kMechanisms; ++k) {
    const Approx prior = in.offset[head * 3 + k] - in.cost_weight[row] * costs[k];
    score.push_back(log_alpha[k] + prior);
    terms.push_back(Exp(log_alpha[k]) * log_alpha[k]);
    off = std::max(off, score[k].error);
  }
  const Approx entropy = Sum(terms) * Approx(-1 / std::log(3.0), kF32);
  ExpectedDecision expected;
  expected.uncertainty = std::clamp(entropy.value, 0.0, 1.0);
  expected.uncertainty_bound = entropy.error + kF32;
  double best = -HUGE_VAL, second = -HUGE_VAL;
  for (const Approx& s : score) {
    second = std::max(second, std::min(best, s.value));
    best = std::max(best, s.value);
  }
  expected.margin = best - second;
  expected.margin_bound = 2 * off + (std::abs(best) + std::abs(second)) * kF32;
  ExpectWeights(score, &expected);
  const double eta = in.eta[row];
  const bool may_be_certain = eta >= 1 || expected.uncertainty - expected.uncertainty_bound < eta;
  const bool may_be_uncertain = eta < 1 && expected.uncertainty + expected.uncertainty_bound >= eta;
  expected.allowed[in.uncertain == UncertainPolicy::kMixture ? kMixture : 0] = may_be_uncertain;
  for (int k = 0; k < kMechanisms; ++k) {
    if (may_be_certain && score[k].value >= best - 2 * off) expected.allowed[k] = true;
  }
  return expected;
}

}  // namespace metattn::testing
