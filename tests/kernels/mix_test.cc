// Mix: the three steps of a mixture between partials that change like those of a layer, against
// sum_k weight_k o_k in double; rows that do not mix keep every bit.
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

class MixTest : public ::testing::TestWithParam<BackendParam> {};

struct MixShape {
  int tokens, heads, group, head_dim;
  int queries() const { return tokens * heads * group; }
};

// A partial triple as one mechanism leaves it, l > 0.
HostPartial RandomPartial(const MixShape& shape, std::uint64_t seed) {
  const auto queries = static_cast<std::size_t>(shape.queries());
  HostPartial partial = {Randoms(queries * shape.head_dim, seed, 20.0f),
                         Randoms(queries, seed + 1, 4.0f), Randoms(queries, seed + 2, 30.0f)};
  for (float& l : partial.l) l = std::abs(l) + 0.5f;
  return partial;
}

std::vector<std::uint8_t> RandomDecisions(const MixShape& shape, std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  std::vector<std::uint8_t> decisions;
  for (int i = 0; i < shape.tokens * shape.heads; ++i) {
    decisions.push_back(engine() % 2 == 0 ? kMixture : static_cast<std::uint8_t>(engine() % 3));
  }
  return decisions;
}

// Weights of each pair sum to 1; some are 0.
std::vector<float> RandomWeights(int pairs, std::uint64_t seed) {
  std::vector<float> weights = Randoms(static_cast<std::size_t>(pairs) * kMechanisms, seed);
  for (int i = 0; i < pairs; ++i) {
    float* of = weights.data() + i * kMechanisms;
    float sum = 0;
    for (int k = 0; k < kMechanisms; ++k) of[k] = std::max(0.0f, of[k]) + (k == 0 ? 0.1f : 0.0f);
    for (int k = 0; k < kMechanisms; ++k) sum += of[k];
    for (int k = 0; k < kMechanisms; ++k) of[k] /= sum;
  }
  return weights;
}

// Runs the three steps; between them the far ops have put their results into the partial.
struct Steps {
  HostPartial near, full, linear;     // as each mechanism leaves the partial
  HostPartial after_full, after_all;  // what Mix made of them
  std::vector<std::uint8_t> decisions;
  std::vector<float> weights;
};

Steps RunSteps(Rig& rig, const MixShape& shape, std::uint64_t seed) {
  Steps steps = {.near = RandomPartial(shape, seed),
                 .full = RandomPartial(shape, seed + 10),
                 .linear = RandomPartial(shape, seed + 20),
                 .decisions = RandomDecisions(shape, seed + 30),
                 .weights = RandomWeights(shape.tokens * shape.heads, seed + 31)};
  const auto partial = [&](const HostPartial& p) {
    return Partial{rig.In(p.o), rig.In(p.m), rig.In(p.l)};
  };
  const std::int64_t q_heads = std::int64_t{shape.heads} * shape.group;
  const auto read = [&](const Partial& p) {
    return ReadPartial(rig, p, shape.tokens, static_cast<int>(q_heads), shape.head_dim);
  };
  MixArgs args = {.tokens = shape.tokens,
                  .heads = shape.heads,
                  .group = shape.group,
                  .head_dim = shape.head_dim,
                  .decisions = rig.In(steps.decisions),
                  .weights = rig.In(steps.weights),
                  .kept = NewPartial(rig, shape.tokens, static_cast<int>(q_heads), shape.head_dim),
                  .sum = rig.Floats(shape.tokens * q_heads * shape.head_dim)};
  const auto run = [&](Mechanism step, const HostPartial& from) {
    args.step = step;
    args.partial = partial(from);
    rig.kernels().Mix(args, rig.stream());
    return read(args.partial);
  };
  const HostPartial first = run(Mechanism::kLocal, steps.near);
  ExpectSamePartial(first, steps.near, "the first step changes no partial");
  steps.after_full = run(Mechanism::kFull, steps.full);
  steps.after_all = run(Mechanism::kLinear, steps.linear);
  return steps;
}

void CheckSteps(const MixShape& shape, const Steps& steps, const std::string& what) {
  std::vector<double> o, o_bound;
  HostPartial between = steps.full, last = steps.linear;
  for (int index = 0; index < shape.queries(); ++index) {
    const int pair = index / shape.group;
    const bool mixes = steps.decisions[pair] == kMixture;
    const float* weight = steps.weights.data() + pair * kMechanisms;
    if (mixes) {
      between.m[index] = steps.near.m[index];
      between.l[index] = steps.near.l[index];
      last.m[index] = 0;
      last.l[index] = 1;
    }
    for (int i = index * shape.head_dim; i < (index + 1) * shape.head_dim; ++i) {
      if (mixes) between.o[i] = steps.near.o[i];
      const double terms[] = {double{weight[0]} * steps.full.o[i] / steps.full.l[index],
                              double{weight[1]} * steps.linear.o[i] / steps.linear.l[index],
                              double{weight[2]} * steps.near.o[i] / steps.near.l[index]};
      double sum = 0, magnitude = 0;
      for (const double term : terms) sum += term, magnitude += std::abs(term);
      o.push_back(mixes ? sum : steps.linear.o[i]);
      o_bound.push_back(mixes ? 6 * kF32 * magnitude : 0);  // two per term, and their sums
    }
  }
  ExpectSamePartial(steps.after_full, between, what + ": P0 is back, other rows untouched");
  ExpectSame(steps.after_all.m, last.m, what + ": m");
  ExpectSame(steps.after_all.l, last.l, what + ": l");
  ExpectWithin(steps.after_all.o, o, o_bound, what + ": o");
}

TEST_P(MixTest, RowsOfMixturesGetTheWeightedSumAndOthersKeepTheirs) {
  Rig rig(GetParam());
  for (const MixShape& shape :
       {MixShape{1, 1, 1, 64}, MixShape{1, 3, 3, 64}, MixShape{77, 3, 3, 32}, MixShape{9, 2, 1, 2},
        MixShape{50, 1, 7, 80}, MixShape{5, 2, 2, 34}, MixShape{0, 3, 3, 64}, MixShape{4, 0, 3, 64},
        MixShape{4, 3, 0, 64}}) {
    const std::string what = absl::StrCat("T ", shape.tokens, " H ", shape.heads, " g ",
                                          shape.group, " d ", shape.head_dim);
    CheckSteps(shape, RunSteps(rig, shape, 51), what);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, MixTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
