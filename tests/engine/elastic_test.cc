// Elastic mode: the header's example, its promises under random load, and the policy it moves.
#include "engine/elastic.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "engine/routing_control.h"
#include "engine/routing_history.h"

namespace metattn {
namespace {

const std::vector<float> kFloors = {0, 0.5f, 1};

Elastic Made(const ElasticOptions& options = {}) {
  Elastic elastic;
  elastic.Configure(options, kFloors);
  return elastic;
}

TEST(Elastic, TheExampleInTheHeaderHolds) {
  struct Moment {
    double at_s, queue_wait_s, inter_token_s;
    float floor;
  };
  const Moment moments[] = {{0, 3, 0.1, 0},     {1, 3, 0.1, 0},    {2, 3, 0.1, 0.5f},
                            {3, 3, 0.1, 0.5f},  {4, 3, 0.1, 1},    {6, 1.5, 0.1, 1},
                            {10, 0, 0.1, 1},    {19.9, 0, 0.1, 1}, {20, 0, 0.1, 0.5f},
                            {29, 0, 0.1, 0.5f}, {30, 0, 0.1, 0},   {99, 0, 0.1, 0}};
  Elastic elastic = Made();
  for (const Moment& m : moments) {
    elastic.Observe(m.at_s, m.queue_wait_s, m.inter_token_s);
    EXPECT_EQ(elastic.floor(), m.floor) << "at " << m.at_s << " s";
  }
}

TEST(Elastic, SlowTokensAloneAreLoadAndOneQuickMomentEndsTheCount) {
  Elastic elastic = Made();
  elastic.Observe(0, 0, 0.3);
  elastic.Observe(1.9, 0, 0.2);  // not above
  elastic.Observe(2.0, 0, 0.3);
  elastic.Observe(3.9, 0, 0.3);
  EXPECT_EQ(elastic.level(), 0u);
  elastic.Observe(4.0, 0, 0.3);
  EXPECT_EQ(elastic.level(), 1u);
}

TEST(Elastic, CalmNeedsBothSignals) {
  Elastic elastic = Made();
  for (double t = 0; t <= 4; ++t) elastic.Observe(t, 9, 9);
  ASSERT_EQ(elastic.level(), 2u);
  for (double t = 5; t <= 100; ++t) elastic.Observe(t, 0, 0.2);  // above half of 0.25
  EXPECT_EQ(elastic.level(), 2u);
  for (double t = 101; t <= 200; ++t) elastic.Observe(t, 1.1, 0);  // above half of 2
  EXPECT_EQ(elastic.level(), 2u);
}

TEST(Elastic, SignalsThatAreNoNumbersMoveNothing) {
  Elastic elastic = Made();
  for (double t = 0; t <= 4; ++t) elastic.Observe(t, 9, 9);
  for (double t = 5; t <= 100; ++t) elastic.Observe(t, std::nan(""), std::nan(""));
  EXPECT_EQ(elastic.level(), 2u);
}

// Random load with random times between looks: moves keep their distance, levels their bounds, and
// when the load goes the level goes back to 0 in the time that its height takes.
TEST(Elastic, UnderRandomLoadMovesKeepTheirDistanceAndCalmLeadsBackToTheBase) {
  std::mt19937 random(5);
  std::uniform_real_distribution<double> uniform(0, 1);
  int ups = 0, downs = 0;
  for (int run = 0; run < 200; ++run) {
    ElasticOptions options;
    options.raise_after_s = 0.1 + 3 * uniform(random);
    options.lower_after_s = options.raise_after_s + 5 * uniform(random);
    Elastic elastic = Made(options);
    double now = 0, last_move = -std::numeric_limits<double>::infinity();
    const double busy = uniform(random);
    bool high = false;
    for (int i = 0; i < 500; ++i) {
      now += uniform(random);
      if (uniform(random) < 0.2) high = uniform(random) < busy;
      const std::size_t before = elastic.level();
      elastic.Observe(now, high ? 5 : uniform(random) < 0.1 ? 1.5 : 0, 0);
      const std::size_t after = elastic.level();
      ASSERT_LT(after, kFloors.size());
      if (after == before) continue;
      ASSERT_EQ(after > before ? after - before : before - after, 1u);
      ASSERT_EQ(after > before, high);
      (after > before ? ups : downs)++;
      const double least = after > before ? options.raise_after_s : options.lower_after_s;
      ASSERT_GE(now - last_move, least) << "run " << run << " at " << now;
      last_move = now;
    }
    const double until =
        now + (static_cast<double>(elastic.level()) + 1) * (options.lower_after_s + 0.5);
    for (; now <= until; now += 0.25) elastic.Observe(now, 0, 0);
    ASSERT_EQ(elastic.level(), 0u);
  }
  EXPECT_GT(ups, 100);
  EXPECT_GT(downs, 100);
}

TEST(Elastic, OtherLevelsKeepTheHighestThatIsNotAboveThePresentOne) {
  Elastic elastic = Made();
  for (double t = 0; t <= 4; ++t) elastic.Observe(t, 9, 9);
  ASSERT_EQ(elastic.floor(), 1);
  elastic.Configure({}, {0, 0.75f, 2});
  EXPECT_EQ(elastic.floor(), 0.75f);
  elastic.Configure({}, {0});
  EXPECT_EQ(elastic.floor(), 0);
}

TEST(Elastic, FloorsAreTheLevelsBetweenTheDefaultAndTheLargest) {
  using Floors = std::vector<float>;
  EXPECT_EQ(ElasticFloors({0, 0.5f, 1, 2}, 0, 1000), (Floors{0, 0.5f, 1, 2}));
  EXPECT_EQ(ElasticFloors({0, 0.5f, 1, 2}, 0.5f, 1.5f), (Floors{0, 1}));
  EXPECT_EQ(ElasticFloors({}, 0, 1000), Floors{0});
}

TEST(RecentMean, ForgetsByTimeNotByCount) {
  RecentMean mean(1);
  mean.Add(0, 4);
  EXPECT_EQ(mean.value(), 4);
  mean.Add(1, 0);
  EXPECT_NEAR(mean.value(), 4 * std::exp(-1.0), 1e-12);
  RecentMean often(1);
  often.Add(0, 4);
  for (int i = 1; i <= 100; ++i) often.Add(i / 100.0, 0);
  EXPECT_NEAR(often.value(), mean.value(), 1e-9);
}

RoutingPolicy Routed(bool elastic) {
  RoutingPolicy policy;
  policy.route = Route::kRouted;
  policy.cost_weight = 0.25f;
  policy.eta = 0.75f;
  policy.elastic = elastic;
  return policy;
}

TEST(RoutingControl, LoadRaisesTheCostWeightOfRoutedRequestsOnlyAndNeverLowersTheirOwn) {
  RoutingControl control(Routed(true), {0, 0.5f, 1});
  EXPECT_TRUE(control.TakeChanged());
  const RouteOptions none, local = {.route = Route::kLocal},
                           own = {.route = Route::kRouted, .cost_weight = 0.75f, .eta = 0.5f};
  for (double t = 0; t <= 2; ++t) control.Observe(t, 9);
  EXPECT_TRUE(control.TakeChanged());
  EXPECT_FALSE(control.TakeChanged());
  EXPECT_EQ(control.cost_weight(), 0.5f);
  EXPECT_EQ(control.Effective(none), (RoutePolicy{Route::kRouted, 0.5f, 0.75f}));
  EXPECT_EQ(control.Effective(own), (RoutePolicy{Route::kRouted, 0.75f, 0.5f}));
  EXPECT_EQ(control.Effective(local), (RoutePolicy{Route::kLocal}));
  for (double t = 3; t <= 4; ++t) control.Observe(t, 9);
  EXPECT_EQ(control.Effective(own).cost_weight, 1);
  EXPECT_TRUE(control.raised());
  control.Set(Routed(false));
  EXPECT_FALSE(control.raised());
  EXPECT_EQ(control.Effective(none).cost_weight, 0.25f);
}

TEST(RoutingControl, TheKillSwitchIsFullForEveryone) {
  RoutingPolicy policy = Routed(true);
  policy.force_full = true;
  RoutingControl control(policy, {0, 0.5f, 1});
  for (double t = 0; t <= 9; ++t) control.Observe(t, 9);
  for (const Route route : {Route::kFull, Route::kLinear, Route::kLocal, Route::kRouted}) {
    EXPECT_EQ(control.Effective({.route = route}), RoutePolicy{});
  }
  EXPECT_EQ(control.cost_weight(), 0);
}

StepRouting Step(std::int64_t full, std::int64_t local) {
  StepRouting step = StepRouting::Zero(2, 1);
  step.layers[0].rows[0] = full;
  step.layers[1].rows[2] = local;
  return step;
}

TEST(RoutingHistory, KeepsLayersForEverAndTheRecentPastForAMinute) {
  RoutingHistory history;
  EXPECT_EQ(history.Recent(0).eligible(), 0);
  history.Add(0.5, Step(1, 10));
  history.Add(31, Step(2, 20));
  history.Add(52, Step(4, 40));
  EXPECT_EQ(history.Recent(54).eligible(), 77);
  EXPECT_EQ(history.Recent(60).eligible(), 66);  // the first slot has gone
  history.Add(61, Step(8, 80));                  // into the first one's place
  EXPECT_EQ(history.Recent(62).eligible(), 154);
  EXPECT_EQ(history.Recent(1000).eligible(), 0);
  EXPECT_EQ(history.layers().at(0).rows[0], 15);
  EXPECT_EQ(history.layers().at(1).rows[2], 150);
  EXPECT_EQ(history.Total().eligible(), 165);
}

}  // namespace
}  // namespace metattn
