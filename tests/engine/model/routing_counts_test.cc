#include "engine/model/routing_counts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "kernels/routing_ops.h"

namespace metattn {
namespace {

using Rows = std::array<std::int64_t, kMechanisms>;

// One layer, two KV heads, two sequences: rows at positions 9 (not eligible), 299 and 399, of which
// the last is forced. 4 sinks.
struct Example {
  std::vector<std::int32_t> position = {9, 299, 399};
  std::vector<std::int32_t> far_end = {0, 192, 256};
  std::vector<std::int32_t> sequence = {0, 0, 1};
  std::vector<std::uint8_t> eligible = {0, 1, 1};
  std::vector<std::uint8_t> decisions = {2, 2, 0, 1, 1, 2};  // full linear | linear local
  std::vector<float> uncertainty = {0, 0, 0.25f, 1.0f, 0, 0};
  std::vector<float> weights = {0,     0,    0,     0, 0, 0, 0.5f, 0.25f, 0.25f,
                                0.25f, 0.5f, 0.25f, 0, 0, 0, 0,    0,     0};
  std::vector<std::uint8_t> routed = {1, 1, 0};

  CountArgs Args() const {
    CountArgs args;
    args.layers = 1;
    args.heads = 2;
    args.sequences = 2;
    args.costs = {.token = {10, 3},
                  .state = {1000, 50},
                  .features = {100, 20},
                  .sinks = 4,
                  .linear_begin = 4,
                  .state_tokens = 100};
    args.position = position;
    args.far_end = far_end;
    args.linear_end = far_end;
    args.sequence = sequence;
    args.eligible = eligible;
    args.decisions = decisions;
    args.uncertainty = uncertainty;
    args.weights = weights;
    args.routed = routed;
    return args;
  }
};

TEST(RoutingCounts, AgreeWithAnExampleWorkedByHand) {
  const Example example;
  const StepRouting routing = CountRouting(example.Args());
  ASSERT_EQ(routing.layers.size(), 1u);
  ASSERT_EQ(routing.sequences.size(), 2u);
  const RoutingCounts& a = routing.sequences[0];
  // Row 9: 10 tokens for each head. Row 299: far 188 tokens, near 112; head 0 full: 300 tokens and
  // features; head 1 linear: 112 tokens, features and a state.
  EXPECT_EQ(a.bytes_dense, 2 * 10 * 10 + 2 * 300 * 10);
  EXPECT_EQ(a.bytes_read, 2 * 10 * 10 + (300 * 10 + 100) + (112 * 10 + 100 + 1000));
  EXPECT_EQ(a.flops_dense, 2 * 10 * 3 + 2 * 300 * 3);
  EXPECT_EQ(a.flops, 2 * 10 * 3 + (300 * 3 + 20) + (112 * 3 + 20 + 50));
  EXPECT_EQ(a.rows, (Rows{1, 1, 0}));
  EXPECT_EQ(a.eligible(), 2);
  EXPECT_EQ(a.routed_rows, 2);
  EXPECT_EQ(a.uncertainty, 1.25);
  // Both heads of row 299 at n = 300: local costs 112 / 300, linear (112 + 100) / 300.
  EXPECT_EQ(a.weights, (std::array<double, kMechanisms>{0.75, 0.75, 0.5}));
  EXPECT_NEAR(a.expected_cost, 0.75 + 0.75 * 212 / 300 + 0.5 * 112 / 300, 1e-12);
  EXPECT_EQ(a.mixture_rows, 0);
  // Row 399: far 252, near 148; head 0 linear, head 1 local; both were forced.
  const RoutingCounts& b = routing.sequences[1];
  EXPECT_EQ(b.bytes_dense, 2 * 400 * 10);
  EXPECT_EQ(b.bytes_read, (148 * 10 + 100 + 1000) + (148 * 10 + 100));
  EXPECT_EQ(b.rows, (Rows{0, 1, 1}));
  EXPECT_EQ(b.routed_rows, 0);
  EXPECT_EQ(b.uncertainty, 0);
  EXPECT_EQ(b.weights, (std::array<double, kMechanisms>{}));
  EXPECT_EQ(b.expected_cost, 0);
  EXPECT_EQ(routing.histogram,
            (std::array<std::int64_t, kUncertaintyBuckets>{0, 0, 1, 0, 0, 0, 0, 0, 0, 1}));
  const RoutingCounts total = routing.Total();
  EXPECT_EQ(total.bytes_read, a.bytes_read + b.bytes_read);
  EXPECT_EQ(total.bytes_dense, a.bytes_dense + b.bytes_dense);
  EXPECT_EQ(total.rows, (Rows{1, 2, 1}));
}

TEST(RoutingCounts, AMixtureReadsWhatItsMechanismsReadTogether) {
  Example example;
  example.decisions = {2, 2, kMixture, 1, kMixture, kMixture};
  const StepRouting routing = CountRouting(example.Args());
  const RoutingCounts& a = routing.sequences[0];
  EXPECT_EQ(a.bytes_read, 2 * 10 * 10 + (300 * 10 + 100 + 1000) + (112 * 10 + 100 + 1000));
  EXPECT_EQ(a.flops, 2 * 10 * 3 + (300 * 3 + 20 + 50) + (112 * 3 + 20 + 50));
  EXPECT_EQ(a.rows, (Rows{0, 1, 0}));
  EXPECT_EQ(a.mixture_rows, 1);
  EXPECT_EQ(a.eligible(), 2);
  EXPECT_EQ(routing.sequences[1].mixture_rows, 2);
  EXPECT_EQ(routing.sequences[1].eligible(), 2);
}

// Rows of an exact window, linear over all positions: keys beside the state are read too.
TEST(RoutingCounts, WhereLinearReadsEverythingEveryRowCountsAndKeysBesideTheStateDoToo) {
  Example example;
  example.eligible = {1, 1, 1};
  example.decisions = {0, 1, 2, 1, kMixture, 1};
  example.routed = {1, 1, 1};
  example.far_end = {0, 188, 256};
  const std::vector<std::int32_t> linear_end = {10, 300, 400};  // 10, 44 and 16 beside the state
  CountArgs args = example.Args();
  args.costs.sinks = args.costs.linear_begin = 0;
  args.costs.linear_all = true;
  args.costs.key = {5, 7};
  args.costs.key_value = {6, 8};
  args.linear_end = linear_end;
  const StepRouting routing = CountRouting(args);
  const RoutingCounts& a = routing.sequences[0];
  // Row 9: full reads nothing more than P0 here; linear the state. Row 299: local and linear.
  const std::int64_t row9 = 2 * (10 * 10 + 100 + 10 * 5) + (1000 + 10 * 6);
  const std::int64_t row299 = 2 * (112 * 10 + 100 + 44 * 5) + (1000 + 44 * 6);
  EXPECT_EQ(a.bytes_read, row9 + row299);
  EXPECT_EQ(a.flops, 2 * (10 * 3 + 20 + 10 * 7) + (50 + 10 * 8) + 2 * (112 * 3 + 20 + 44 * 7) +
                         (50 + 44 * 8));
  EXPECT_EQ(a.rows, (Rows{1, 2, 1}));
  const RoutingCounts& b = routing.sequences[1];  // mixture and linear
  EXPECT_EQ(b.bytes_read, 2 * (144 * 10 + 100 + 16 * 5 + 1000 + 16 * 6) + 256 * 10);
  EXPECT_EQ(b.mixture_rows, 1);
  EXPECT_EQ(b.routed_rows, 2);
  // c_linear is the state alone.
  EXPECT_NEAR(a.expected_cost, 0.75 + 0.75 * 100 / 300 + 0.5 * 112 / 300, 1e-12);
}

TEST(RoutingCounts, AllFullReadsWhatDenseReadsWhenThereAreNoFeatures) {
  Example example;
  std::fill(example.decisions.begin(), example.decisions.end(), std::uint8_t{0});
  CountArgs args = example.Args();
  args.costs.features = {};
  args.uncertainty = {};
  const RoutingCounts total = CountRouting(args).Total();
  EXPECT_EQ(total.bytes_read, total.bytes_dense);
  EXPECT_EQ(total.flops, total.flops_dense);
  EXPECT_EQ(total.rows, (Rows{4, 0, 0}));
  EXPECT_EQ(total.routed_rows, 0) << "without uncertainties nothing was decided";
}

TEST(RoutingCounts, LayersAreCountedApart) {
  const Example example;
  std::vector<std::uint8_t> decisions(12, 2);
  std::fill(decisions.begin() + 6, decisions.end(), std::uint8_t{0});
  std::vector<float> uncertainty(12, 0.5f), weights(36, 0.25f);
  CountArgs args = example.Args();
  args.layers = 2;
  args.decisions = decisions;
  args.uncertainty = uncertainty;
  args.weights = weights;
  const StepRouting routing = CountRouting(args);
  EXPECT_EQ(routing.layers[0].rows, (Rows{0, 0, 4}));
  EXPECT_EQ(routing.layers[1].rows, (Rows{4, 0, 0}));
  EXPECT_LT(routing.layers[0].bytes_read, routing.layers[1].bytes_read);
  EXPECT_EQ(routing.histogram[5], 4);
}

void ExpectSame(const RoutingCounts& a, const RoutingCounts& b) {
  EXPECT_EQ(a.bytes_read, b.bytes_read);
  EXPECT_EQ(a.bytes_dense, b.bytes_dense);
  EXPECT_EQ(a.flops, b.flops);
  EXPECT_EQ(a.flops_dense, b.flops_dense);
  EXPECT_EQ(a.rows, b.rows);
  EXPECT_EQ(a.routed_rows, b.routed_rows);
  EXPECT_EQ(a.uncertainty, b.uncertainty);
  EXPECT_EQ(a.mixture_rows, b.mixture_rows);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.expected_cost, b.expected_cost);
}

StepRouting WithShadow() {
  const Example example;
  StepRouting routing = CountRouting(example.Args());
  routing.shadow.resize(1);
  routing.shadow[0].Note(0.02);
  routing.shadow[0].Note(5);
  return routing;
}

TEST(RoutingCounts, MergeAddsWhatEncodeWrote) {
  const StepRouting one = WithShadow();
  const std::vector<std::byte> message = one.Encode();
  EXPECT_EQ(message.size(), one.EncodedBytes());
  StepRouting merged = StepRouting::Zero(1, 2, 1);
  ASSERT_TRUE(merged.Merge(message));
  ExpectSame(merged.layers[0], one.layers[0]);
  ExpectSame(merged.sequences[0], one.sequences[0]);
  ExpectSame(merged.sequences[1], one.sequences[1]);
  EXPECT_EQ(merged.histogram, one.histogram);
  EXPECT_EQ(merged.shadow[0].counts, one.shadow[0].counts);
  EXPECT_EQ(merged.shadow[0].sum, one.shadow[0].sum);

  ASSERT_TRUE(merged.Merge(message));  // as of a second rank
  StepRouting twice = one;
  twice.Add(one);
  ExpectSame(merged.Total(), twice.Total());
  EXPECT_EQ(merged.sequences[1].rows, (Rows{0, 2, 2}));
  EXPECT_EQ(merged.histogram[9], 2);
  EXPECT_EQ(merged.shadow[0].counts, twice.shadow[0].counts);
}

TEST(RoutingCounts, AMessageOfAnotherSizeIsRefused) {
  const StepRouting one = WithShadow();
  const std::vector<std::byte> message = one.Encode();
  StepRouting target = StepRouting::Zero(1, 2, 1);
  EXPECT_FALSE(target.Merge({}));
  EXPECT_FALSE(target.Merge(std::span(message).first(message.size() - 1)));
  std::vector<std::byte> longer = message;
  longer.resize(longer.size() + sizeof(RoutingCounts));
  EXPECT_FALSE(target.Merge(longer));
  ExpectSame(target.Total(), RoutingCounts());
  StepRouting other = StepRouting::Zero(1, 2, 1);
  other.sequences.resize(3);
  EXPECT_FALSE(other.Merge(message));
}

}  // namespace
}  // namespace metattn
