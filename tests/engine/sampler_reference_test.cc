// The sampler against a slow, straightforward one in double precision, and against the exact
// probabilities by a chi-square test.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include "engine/sampler.h"

namespace metattn {
namespace {

struct Reference {
  std::vector<double> probability;  // after truncation, sums to 1
  std::vector<double> logprob;      // before temperature and truncation
  double margin = 1;                // distance of the nearest truncation from tipping over
};

std::vector<double> Adjusted(const std::vector<float>& logits, const SamplingParams& p,
                             const SampleContext& c) {
  std::vector<double> x(logits.begin(), logits.end());
  for (double& v : x) v = std::isnan(v) ? -std::numeric_limits<double>::infinity() : v;
  for (const auto& [id, bias] : p.logit_bias) x[static_cast<std::size_t>(id)] += bias;
  std::map<std::int32_t, int> seen;  // id -> times in the output
  for (const auto id : c.prompt) seen[id];
  for (const auto id : c.output) ++seen[id];
  for (const auto& [id, count] : seen) {
    double& v = x[static_cast<std::size_t>(id)];
    v = v > 0 ? v / p.repetition_penalty : v * p.repetition_penalty;
    v -= p.frequency_penalty * count + (count > 0 ? p.presence_penalty : 0);
  }
  for (const auto id : c.forbidden) {
    x[static_cast<std::size_t>(id)] = -std::numeric_limits<double>::infinity();
  }
  return x;
}

std::vector<double> Softmax(const std::vector<double>& x, double temperature) {
  const double max = *std::max_element(x.begin(), x.end());
  std::vector<double> p(x.size());
  double sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) sum += p[i] = std::exp((x[i] - max) / temperature);
  for (double& v : p) v /= sum;
  return p;
}

Reference Slow(const std::vector<float>& logits, const SamplingParams& params,
               const SampleContext& context) {
  const std::vector<double> x = Adjusted(logits, params, context);
  Reference r;
  for (const double v : Softmax(x, 1)) r.logprob.push_back(std::log(v));
  std::vector<double> p = Softmax(x, params.temperature);
  std::vector<std::size_t> order(p.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return x[a] > x[b]; });
  const double floor = params.min_p * p[order[0]];
  for (double& v : p) {
    if (params.min_p > 0 && v < p[order[0]])
      r.margin = std::min(r.margin, std::abs(v - floor) / p[order[0]]);
    if (v < floor) v = 0;
  }
  const auto k = static_cast<std::size_t>(params.top_k);
  for (std::size_t i = k; k > 0 && i < order.size(); ++i) p[order[i]] = 0;
  const double mass = std::accumulate(p.begin(), p.end(), 0.0);
  double sum = 0;
  for (const std::size_t i : order) {
    if (params.top_p < 1 && p[i] > 0) {
      r.margin = std::min(r.margin, std::abs(sum / mass - params.top_p));
      if (sum / mass >= params.top_p) p[i] = 0;
    }
    sum += p[i];
  }
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& v : p) v /= kept;
  r.probability = p;
  return r;
}

// The id whose share of [0, 1), in order of id, holds the draw; and how near a border it is.
std::int32_t DrawSlow(const Reference& r, double uniform, double* margin) {
  double sum = 0;
  std::int32_t last = 0;
  *margin = r.margin;
  bool found = false;
  for (std::size_t i = 0; i < r.probability.size(); ++i) {
    sum += r.probability[i];
    *margin = std::min(*margin, std::abs(sum - uniform));
    if (r.probability[i] > 0 && !found) {
      last = static_cast<std::int32_t>(i);
      found = sum > uniform;
    }
  }
  return last;
}

class RandomCase {
 public:
  explicit RandomCase(unsigned seed) : random_(seed) {
    const std::size_t vocab = 1 + random_() % (seed % 10 == 0 ? 5000 : 300);
    std::normal_distribution<float> normal(0, Pick({0.1f, 1.0f, 4.0f}));
    logits.resize(vocab);
    for (float& x : logits) x = normal(random_);
    if (Chance(4)) {  // ties
      for (float& x : logits) x = std::round(x * 2) / 2;
    }
    if (Chance(8)) logits[random_() % vocab] = std::numeric_limits<float>::quiet_NaN();
    if (Chance(2)) params.temperature = Pick({0.3, 0.7, 1.0, 2.0});
    if (params.temperature == 0) params.temperature = 1;
    if (Chance(2)) params.top_k = static_cast<std::int32_t>(1 + random_() % (vocab + 5));
    if (Chance(2)) params.top_p = Pick({0.01, 0.5, 0.9, 0.95, 0.999});
    if (Chance(3)) params.min_p = Pick({0.01, 0.1, 0.5, 1.0});
    if (Chance(3)) params.repetition_penalty = Pick({0.8, 1.1, 1.5});
    if (Chance(3)) params.presence_penalty = Pick({-1.0, 0.7, 2.0});
    if (Chance(3)) params.frequency_penalty = Pick({-0.3, 0.2, 1.0});
    if (Chance(3)) params.logit_bias = {{Id(), 2.5}};
    params.logprobs = Chance(2) ? static_cast<std::int32_t>(random_() % 21) : -1;
    for (unsigned i = random_() % 30; i > 0; --i) prompt.push_back(Id());
    for (unsigned i = random_() % 30; i > 0; --i) output.push_back(Id());
    if (Chance(3) && vocab > 3) forbidden = {Id(), Id()};
    context.prompt = prompt;
    context.output = output;
    context.forbidden = forbidden;
    context.seed = random_();
    context.position = random_() % 10000;
  }

  std::vector<float> logits;
  SamplingParams params;
  std::vector<std::int32_t> prompt, output, forbidden;
  SampleContext context;

 private:
  template <typename T>
  T Pick(std::initializer_list<T> values) {
    return *(values.begin() + random_() % values.size());
  }
  bool Chance(unsigned one_in) { return random_() % one_in == 0; }
  std::int32_t Id() { return static_cast<std::int32_t>(random_() % logits.size()); }

  std::mt19937 random_;
};

TEST(SamplerReference, RandomCasesChooseWhatTheSlowSamplerChooses) {
  int near_a_border = 0;
  constexpr int kCases = 4000;
  for (unsigned seed = 0; seed < kCases; ++seed) {
    const RandomCase c(seed);
    const Reference r = Slow(c.logits, c.params, c.context);
    if (std::isnan(r.probability[0])) continue;  // everything forbidden: sampler_test
    double margin = 0;
    const double uniform = CounterUniform(c.context.seed, c.context.position);
    const std::int32_t expected = DrawSlow(r, uniform, &margin);
    std::vector<float> row = c.logits;
    const GeneratedToken token = Sample(row, c.params, c.context);
    if (margin < 1e-5) {  // single precision may tip over here
      ++near_a_border;
    } else {
      ASSERT_EQ(token.id, expected) << "case " << seed << " margin " << margin;
    }
    ASSERT_EQ(token.logprob.has_value(), c.params.logprobs >= 0);
    if (!token.logprob) continue;
    // The sum is double, the adjusted logits are float: one rounding of a value below 20.
    ASSERT_NEAR(*token.logprob, r.logprob[static_cast<std::size_t>(token.id)], 8e-6);
    std::vector<double> sorted = r.logprob;
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (std::size_t i = 0; i < token.top.size(); ++i) {
      ASSERT_NEAR(token.top[i].logprob, sorted[i], 8e-6);
      ASSERT_NEAR(r.logprob[static_cast<std::size_t>(token.top[i].id)], sorted[i], 8e-6);
      if (i > 0 && token.top[i].logprob == token.top[i - 1].logprob) {
        ASSERT_LT(token.top[i - 1].id, token.top[i].id) << "ties go to the lower id";
      }
    }
    const auto possible = static_cast<std::size_t>(
        std::count_if(sorted.begin(), sorted.end(), [](double v) { return std::isfinite(v); }));
    ASSERT_EQ(token.top.size(), std::min(possible, static_cast<std::size_t>(c.params.logprobs)));
  }
  EXPECT_LT(near_a_border, kCases / 25);
}

// Pearson's statistic against its mean plus five standard deviations.
void ExpectDistribution(const std::vector<float>& logits, const SamplingParams& params) {
  constexpr int kDraws = 8000;
  const Reference r = Slow(logits, params, {});
  std::vector<int> counts(logits.size());
  for (std::uint64_t i = 0; i < kDraws; ++i) {
    SampleContext context;
    context.seed = 99;
    context.position = i;
    std::vector<float> row = logits;
    ++counts[static_cast<std::size_t>(Sample(row, params, context).id)];
  }
  double chi = 0, rest_expected = 0, rest_seen = 0;
  int freedom = -1;
  const auto add = [&](double expected, double seen) {
    chi += (seen - expected) * (seen - expected) / expected;
    ++freedom;
  };
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double expected = r.probability[i] * kDraws;
    if (expected == 0) {
      ASSERT_EQ(counts[i], 0) << "id " << i << " is cut off";
    } else if (expected < 8) {
      rest_expected += expected;
      rest_seen += counts[i];
    } else {
      add(expected, counts[i]);
    }
  }
  if (rest_expected >= 8) add(rest_expected, rest_seen);
  ASSERT_GE(freedom, 1);
  EXPECT_LT(chi, freedom + 5 * std::sqrt(2.0 * freedom) + 5) << freedom << " degrees of freedom";
}

TEST(SamplerDistribution, DrawsFollowTheExactProbabilities) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(200);
  for (float& x : logits) x = normal(random);
  SamplingParams plain;
  plain.temperature = 1;
  std::vector<SamplingParams> all(6, plain);
  all[1].temperature = 0.5;
  all[2].top_k = 7;
  all[3].top_p = 0.8;
  all[4].min_p = 0.05;
  all[5].temperature = 1.7;
  all[5].top_k = 50;
  all[5].top_p = 0.9;
  all[5].min_p = 0.01;
  for (std::size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectDistribution(logits, all[i]);
  }
}

}  // namespace
}  // namespace metattn
