// LinearAbsorb, LinearOdds, FarLinear: states, odds and merges against their formulas in double;
// states bit for bit independent of the steps that built them, and pairs of ops of being pairs.
#include <gtest/gtest.h>

#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/kernels/linear_support.h"

namespace metattn::testing {
namespace {

constexpr FeatureMap kElu = FeatureMap::kEluPlusOne;

std::vector<LinearCase> Cases() {
  return {
      {.attention = {.sequences = {{400, 1}}}},
      {.attention = {.heads = 3, .group = 3, .sequences = {{330, 3}}}},
      {.attention = {.heads = 3, .group = 3, .window = 64, .sequences = {{50, 301}}}},
      {.attention = {.heads = 2,
                     .group = 3,
                     .window = 64,
                     .sequences = {{0, 1}, {62, 4}, {63, 70}, {700, 2}, {5, 0}, {127, 1}}}},
      {.attention = {.heads = 3,
                     .group = 3,
                     .sequences = {{255, 1},
                                   {256, 1},
                                   {318, 1},
                                   {319, 1},
                                   {320, 1},
                                   {900, 1},
                                   {0, 1},
                                   {384, 1},
                                   {500, 1},
                                   {501, 1},
                                   {502, 1},
                                   {503, 1},
                                   {504, 1},
                                   {505, 1},
                                   {63, 1},
                                   {259, 1}}}},
      {.attention = {.heads = 2, .group = 2, .window = 50, .exact = true, .sequences = {{0, 170}}}},
      {.attention = {.group = 3, .window = 50, .exact = true, .sequences = {{303, 1}, {177, 2}}}},
      {.attention =
           {.group = 2, .sinks = 70, .window = 40, .exact = true, .sequences = {{60, 90}}}},
      {.attention = {.group = 2, .sinks = 70, .window = 64, .sequences = {{100, 150}}}},
      {.attention = {.heads = 2, .group = 2, .window = 64, .sequences = {{40, 150}, {200, 1}}},
       .all = true},
      {.attention =
           {.heads = 1, .group = 2, .head_dim = 32, .window = 64, .sequences = {{90, 130}}},
       .map = kElu,
       .all = true},
      {.attention = {.heads = 2, .group = 3, .window = 64, .sequences = {{70, 130}, {299, 1}}},
       .map = kElu},
      {.attention =
           {.heads = 2, .group = 3, .head_dim = 32, .window = 64, .sequences = {{90, 90}}}},
      {.attention = {.group = 4, .head_dim = 128, .window = 64, .sequences = {{150, 70}, {90, 1}}}},
      {.attention =
           {.heads = 2, .group = 2, .head_dim = 34, .window = 64, .sequences = {{99, 99}}}},
      {.attention =
           {.group = 1, .head_dim = 34, .window = 40, .exact = true, .sequences = {{99, 9}}},
       .map = kElu},
      {.attention = {.group = 5, .head_dim = 2, .sinks = 0, .window = 64, .sequences = {{80, 90}}}},
      {.attention = {.group = 1, .head_dim = 138, .window = 64, .sequences = {{130, 60}}}},
      {.attention = {.group = 1, .head_dim = 256, .window = 64, .sequences = {{200, 1}}}},
      {.attention = {.group = 17, .head_dim = 48, .window = 64, .sequences = {{120, 20}}}},
      {.attention = {.group = 3, .window = 64, .sequences = {{150, 40}, {99, 1}}}, .weights = 30},
      {.attention = {.heads = 0, .group = 3, .sequences = {{300, 3}}}},
      {.attention = {.heads = 2, .group = 0, .window = 64, .sequences = {{100, 100}}}},
      {.attention = {.heads = 2, .group = 3, .sequences = {}}},
      {.attention = {.heads = 2, .group = 3, .sequences = {{5, 0}, {9, 0}}}},
  };
}

std::vector<std::int32_t> Fresh(const LinearCase& shape) {
  return std::vector<std::int32_t>(shape.attention.sequences.size());
}

// Expected values and bounds of one array, filled in the array's order.
struct Expectation {
  std::vector<double> value, bound;
  void Add(double v, double b) {
    value.push_back(v);
    bound.push_back(b);
  }
  // A place that the ops must leave as it was: NaN of 0xff bytes stands for it.
  void Check(const std::vector<float>& actual, const std::string& what) const {
    ExpectWithin(actual, value, bound, what);
  }
};

// The state at `at` is that of the whole blocks before `end`; with none of them its
// memory is as it was.
void CheckState(const LinearWorld& world, const float* at, const ExpectedState& state,
                double rounding, const std::string& what) {
  const std::vector<float> actual(at, at + world.state_floats());
  if (state.end == 0) {
    for (float value : actual) ASSERT_TRUE(std::isnan(value)) << what << ": written";
    return;
  }
  Expectation expected;
  const double relative = state.relative + (state.keys + 3.0) * kF32;
  for (std::size_t i = 0; i < state.s.size(); ++i) {
    expected.Add(state.s[i], state.s_magnitude[i] * (relative + rounding) + 1e-37);
  }
  for (double z : state.z) expected.Add(z, z * relative + 1e-37);
  expected.Check(actual, what);
}

// What a row's partial becomes when linear attention is merged into P0.
struct Merged {
  double m, m_bound, l, l_bound;
  std::vector<double> o, o_bound;
};

Merged Merge(const ExpectedRow& row, const float* o, float m, float l, bool alone) {
  Merged merged;
  merged.m = alone ? row.lse : std::max<double>(m, row.lse);
  const double keep = alone ? 0.0 : std::exp(m - merged.m), add = std::exp(row.lse - merged.m);
  const double size = std::abs(double{m}) + std::abs(row.lse);
  const double relative = std::expm1(2 * row.lse_bound + 2 * size * kF32) + 4 * kExp + 6 * kF32;
  merged.m_bound = row.lse_bound + kF32 * size;
  merged.l = l * keep + add;
  merged.l_bound = merged.l * relative;
  for (std::size_t i = 0; i < row.value.size(); ++i) {
    merged.o.push_back((alone ? 0.0 : o[i] * keep) + row.value[i] * add);
    merged.o_bound.push_back((std::abs(o[i]) * keep + std::abs(row.value[i]) * add) * relative +
                             row.value_bound[i] * add * (1 + relative) + 1e-37);
  }
  return merged;
}

class LinearAttentionTest : public ::testing::TestWithParam<BackendParam> {
 protected:
  double StateRounding(const Rig& rig) const { return rig.rounds_features() ? 1.01 * kBf16 : 0.0; }
};

// What the rows of one KV head were and should be.
struct RowChecks {
  Expectation phi, lse, o, m, l;
  std::vector<float> actual_phi, actual_lse, actual_o, actual_m, actual_l;

  // Query `index` of [T, H*g].
  void Add(const LinearResult& result, int index, const ExpectedRow& row, bool eligible) {
    const std::size_t features = row.features.phi.size();
    for (std::size_t f = 0; f < features; ++f) {
      const float actual = result.phi_q[index * features + f];
      if (eligible) {
        actual_phi.push_back(actual);
        phi.Add(row.features.phi[f], row.features.phi[f] * row.features.relative + 1e-37);
      } else {
        EXPECT_TRUE(std::isnan(actual)) << "query " << index << ": features written";
      }
    }
    actual_lse.push_back(result.lse_far[index]);
    lse.Add(eligible ? row.lse : -HUGE_VAL, eligible ? row.lse_bound : 0.0);
  }

  void Add(const LinearResult& result, int index, const Merged& merged) {
    const std::size_t d = merged.o.size();
    actual_m.push_back(result.partial.m[index]);
    actual_l.push_back(result.partial.l[index]);
    m.Add(merged.m, merged.m_bound);
    l.Add(merged.l, merged.l_bound);
    for (std::size_t i = 0; i < d; ++i) {
      actual_o.push_back(result.partial.o[index * d + i]);
      o.Add(merged.o[i], merged.o_bound[i]);
    }
  }

  void Check(const std::string& what) const {
    phi.Check(actual_phi, what + " phi");
    lse.Check(actual_lse, what + " lse");
    m.Check(actual_m, what + " m");
    l.Check(actual_l, what + " l");
    o.Check(actual_o, what + " o");
  }
};

// What a step of fresh states began with and what it gave.
struct FreshStep {
  HostPartial near;
  std::vector<float> queries;
  LinearResult result;
};

// All checks of one KV head after one step of fresh states.
void CheckHead(const LinearWorld& world, const LinearCase& shape, const StepRows& rows,
               const FreshStep& step, int h, double rounding) {
  const auto& [near, queries, result] = step;
  const int group = shape.attention.group, q_heads = shape.attention.heads * group;
  const int d = shape.attention.head_dim;
  const auto blocks = [&](int t) { return world.LinearEnd(rows.position[t]) / 64 * 64; };
  RowChecks checks;
  int row = 0;
  for (std::size_t s = 0; s < shape.attention.sequences.size(); ++s) {
    if (shape.attention.sequences[s].rows == 0) continue;
    const auto sequence = static_cast<int>(s);
    const std::string what = absl::StrCat(shape.Name(), ": head ", h, " sequence ", s);
    const int end = row + shape.attention.sequences[s].rows, left = blocks(end - 1);
    ExpectedState state;
    world.Extend(sequence, h, blocks(row), &state);
    CheckState(world, world.StateIn(result.absorbed, sequence, h), state, rounding,
               what + " absorbed");
    for (bool checked = false; row < end; ++row) {
      if (!checked && left <= world.LinearEnd(rows.position[row])) {
        checked = true;
        world.Extend(sequence, h, left, &state);
        CheckState(world, world.StateIn(result.states, sequence, h), state, rounding,
                   what + " left");
      }
      world.Extend(sequence, h, world.LinearEnd(rows.position[row]), &state);
      for (int hq = h * group; hq < (h + 1) * group; ++hq) {
        const int index = row * q_heads + hq;
        const float* near_o = near.o.data() + static_cast<std::ptrdiff_t>(index) * d;
        const float m = near.m[index], l = near.l[index];
        const ExpectedRow expected =
            world.Expect(hq, queries.data() + static_cast<std::ptrdiff_t>(index) * d, m, l, state);
        checks.Add(result, index, expected, world.Eligible(rows, row));
        checks.Add(result, index,
                   world.Listed(rows, row, h)
                       ? Merge(expected, near_o, m, l, shape.all)
                       : Merged{m, 0, l, 0, std::vector<double>(near_o, near_o + d),
                                std::vector<double>(static_cast<std::size_t>(d))});
      }
    }
  }
  checks.Check(absl::StrCat(shape.Name(), ": head ", h));
}

TEST_P(LinearAttentionTest, AStepOfFreshStatesFollowsTheFormulas) {
  Rig rig(GetParam());
  for (const LinearCase& shape : ForThisRun(Cases())) {
    LinearWorld world(rig, shape, 11);
    const StepRows rows = world.Rows(shape.attention.sequences, Fresh(shape));
    const FreshStep step{world.Near(rows), world.Queries(rows), world.Run(rows)};
    ExpectSame(step.result.after_odds, step.result.absorbed,
               shape.Name() + ": odds left the states alone");
    for (int h = 0; h < shape.attention.heads; ++h) {
      CheckHead(world, shape, rows, step, h, StateRounding(rig));
    }
  }
}

void Append(const std::vector<float>& more, std::vector<float>* all) {
  all->insert(all->end(), more.begin(), more.end());
}

// The sequences' rows in steps of odd sizes; a step takes some sequences' rows and none of others.
LinearResult RunInSteps(LinearWorld& world, const LinearCase& shape,
                        std::vector<std::int32_t>* state_end) {
  LinearResult all;
  *state_end = Fresh(shape);
  for (std::size_t s = 0; s < shape.attention.sequences.size(); ++s) {
    const SequenceRows& rows = shape.attention.sequences[s];
    int size = 1;
    for (int done = 0; done < rows.rows; done += size, size = size * 2 % 23 + 1) {
      std::vector<SequenceRows> step(shape.attention.sequences.size());
      step[s] = {rows.start + done, std::min(size, rows.rows - done)};
      const LinearResult piece = world.Run(world.Rows(step, *state_end));
      *state_end = world.StateEnds(step, *state_end);
      Append(piece.phi_q, &all.phi_q);
      Append(piece.lse_far, &all.lse_far);
      Append(piece.partial.o, &all.partial.o);
      Append(piece.partial.m, &all.partial.m);
      Append(piece.partial.l, &all.partial.l);
      all.states = piece.states;
    }
  }
  return all;
}

void ExpectSameRows(const LinearResult& actual, const LinearResult& expected,
                    const std::string& what) {
  ExpectSame(actual.phi_q, expected.phi_q, what + ": phi");
  ExpectSame(actual.lse_far, expected.lse_far, what + ": lse");
  ExpectSamePartial(actual.partial, expected.partial, what);
}

std::vector<LinearCase> SteppedCases() {
  return {
      {.attention =
           {.heads = 3, .group = 3, .window = 64, .sequences = {{300, 150}, {0, 140}, {700, 1}}}},
      {.attention = {.heads = 1, .group = 2, .window = 50, .exact = true, .sequences = {{90, 99}}}},
      {.attention = {.heads = 2, .group = 2, .head_dim = 34, .window = 64, .sequences = {{60, 80}}},
       .map = kElu,
       .all = true},
  };
}

// With bf16 products rows of few and of many are rounded differently unless deterministic; states
// never are.
TEST_P(LinearAttentionTest, StatesAndRowsDoNotDependOnStepsOrThreads) {
  Rig rig(GetParam());
  for (const LinearCase& shape : ForThisRun(SteppedCases())) {
    LinearWorld whole_world(rig, shape, 12), step_world(rig, shape, 12);
    const LinearResult whole =
        whole_world.Run(whole_world.Rows(shape.attention.sequences, Fresh(shape)));
    std::vector<std::int32_t> state_end;
    const LinearResult steps = RunInSteps(step_world, shape, &state_end);
    ExpectSame(steps.states, whole.states, shape.Name() + ": states of steps");
    if (!rig.rounds_factors()) ExpectSameRows(steps, whole, shape.Name() + ": steps");
    BackendParam other = GetParam();
    other.threads = 2;
    Rig rig2(other);
    LinearWorld world2(rig2, shape, 12);
    const LinearResult threads = world2.Run(world2.Rows(shape.attention.sequences, Fresh(shape)));
    ExpectSame(threads.states, whole.states, shape.Name() + ": states of two threads");
    ExpectSameRows(threads, whole, shape.Name() + ": two threads");
  }
}

// Preemption and prefix reuse: what steps left behind equals what is rebuilt from the pages.
TEST_P(LinearAttentionTest, AStateRebuiltFromPagesIsTheOneThatStepsLeft) {
  Rig rig(GetParam());
  for (const LinearCase& shape : ForThisRun(SteppedCases())) {
    LinearWorld world(rig, shape, 13), fresh(rig, shape, 13);
    std::vector<std::int32_t> state_end;
    RunInSteps(world, shape, &state_end);
    std::vector<SequenceRows> last;
    for (const SequenceRows& rows : shape.attention.sequences) {
      last.push_back({rows.start + rows.rows - 1, 1});
    }
    const LinearResult kept = world.Run(world.Rows(last, state_end));
    const LinearResult rebuilt = fresh.Run(fresh.Rows(last, Fresh(shape)));
    ExpectSame(rebuilt.absorbed, kept.absorbed, shape.Name() + ": rebuilt states");
    ExpectSame(rebuilt.states, kept.states, shape.Name() + ": states after the step");
    ExpectSameRows(rebuilt, kept, shape.Name() + ": rows after a rebuild");
  }
}

// Steps in which every row is forced have no odds; states follow all the same, whatever the steps
// before and after them were.
TEST_P(LinearAttentionTest, StatesFollowStepsWithoutOdds) {
  Rig rig(GetParam());
  const LinearCase shape = {
      .attention = {.heads = 2, .group = 2, .window = 64, .sequences = {{70, 330}}}};
  const std::vector<SequenceRows> steps[] = {{{70, 130}}, {{200, 70}}, {{270, 130}}};
  const auto run = [&](bool forced) {  // the steps' states; the second has odds anyway
    LinearWorld world(rig, shape, 15);
    std::vector<std::vector<float>> states;
    std::vector<std::int32_t> state_end = {0};
    for (const auto& step : steps) {
      const StepRows rows = world.Rows(step, state_end);
      const bool follows = forced && &step != &steps[1];
      states.push_back(follows ? world.Follow(rows) : world.Run(rows).states);
      state_end = world.StateEnds(step, state_end);
    }
    return states;
  };
  const auto actual = run(true), expected = run(false);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    ExpectSame(actual[i], expected[i], absl::StrCat("step ", i));
  }
}

// Whatever a backend runs side by side.
TEST_P(LinearAttentionTest, PairsOfOpsGiveTheBitsOfOneAfterTheOther) {
  Rig rig(GetParam());
  for (const LinearCase& shape : ForThisRun(Cases())) {
    LinearWorld one_world(rig, shape, 16), pair_world(rig, shape, 16);
    const auto rows = [&](LinearWorld& world) {
      return world.Rows(shape.attention.sequences, Fresh(shape));
    };
    const LinearResult one = one_world.Step(rows(one_world), false);
    const LinearResult pair = pair_world.Step(rows(pair_world), true);
    ExpectSame(pair.states, one.states, shape.Name() + ": states");
    ExpectSame(pair.near_stats, one.near_stats, shape.Name() + ": statistics");
    ExpectSameRows(pair, one, shape.Name());
  }
}

TEST_P(LinearAttentionTest, AnEmptyListStillBringsStatesForward) {
  Rig rig(GetParam());
  const LinearCase shape = {
      .attention = {.heads = 2, .group = 0, .window = 64, .sequences = {{100, 100}}}};
  LinearWorld world(rig, shape, 14);
  const LinearResult result = world.Run(world.Rows(shape.attention.sequences, {0}));
  for (int h = 0; h < 2; ++h) {
    ExpectedState state;
    world.Extend(0, h, 128, &state);
    CheckState(world, world.StateIn(result.states, 0, h), state, StateRounding(rig), "no list");
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearAttentionTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
