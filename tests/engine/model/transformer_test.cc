// The whole forward pass: against transformers' logits, and its invariances (ranks, chunks, routes,
// causality).
#include "engine/model/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/support/model_runner.h"
#include "tests/support/source_path.h"

namespace metattn::test {
namespace {

constexpr double kF32Rounding = 0x1p-23;
constexpr double kBf16Rounding = 0x1p-9;  // K and V are stored in bf16, the reference keeps f32

std::string ModelPath(const std::string& name) {
  return SourcePath("tests/support/fixtures/models/" + name);
}

template <typename T>
std::vector<T> ReadValues(const std::string& path) {
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  EXPECT_TRUE(in) << path;
  std::vector<T> values(static_cast<std::size_t>(in.tellg()) / sizeof(T));
  in.seekg(0);
  in.read(reinterpret_cast<char*>(values.data()),
          static_cast<std::streamsize>(values.size() * sizeof(T)));
  return values;
}

RunnerOutput Forward(const std::string& model, std::span<const std::int32_t> tokens,
                     const RunnerOptions& options) {
  absl::StatusOr<RunnerOutput> output = RunModel(ModelPath(model), tokens, options);
  EXPECT_TRUE(output.ok()) << output.status();
  return output.ok() ? *std::move(output) : RunnerOutput{};
}

// The numeric format of a backend: cpu's widest kernels round activations to bf16, few rows at a
// time do not.
double RoundingOf(const std::string& device) {
  return device == "cpu" ? kBf16Rounding : kF32Rounding;
}

double Bound(const std::string& model, std::span<const std::int32_t> tokens,
             const RunnerOptions& options, double relative) {
  absl::StatusOr<double> bound = MeasuredBound(ModelPath(model), tokens, options, relative);
  EXPECT_TRUE(bound.ok()) << bound.status();
  return bound.value_or(0);
}

std::vector<std::int32_t> Tokens(const std::string& model) {
  return ReadValues<std::int32_t>(ModelPath(model) + "/tokens.i32");
}

const RunnerOptions kSmallWindow = {.window = 64, .sinks = 4, .chunk = 50};

class EveryKind : public ::testing::TestWithParam<std::tuple<const char*, const char*>> {};

TEST_P(EveryKind, GivesTheLogitsOfTransformers) {
  const auto& [model, device] = GetParam();
  const std::vector<std::int32_t> tokens = Tokens(model);
  const std::vector<float> expected = ReadValues<float>(ModelPath(model) + "/logits.f32");
  RunnerOptions options = kSmallWindow;  // near and far parts both take part
  options.device = device;
  const RunnerOutput output = Forward(model, tokens, options);
  ASSERT_GE(output.logits.size(), expected.size());
  const double bound = Bound(model, tokens, options, kBf16Rounding);
  const std::span<const float> last(output.logits.data() + output.logits.size() - expected.size(),
                                    expected.size());
  const double difference = MaxAbsDifference(last, expected);
  EXPECT_LE(difference, bound);
  double magnitude = 0;
  for (float x : expected) magnitude = std::max(magnitude, std::abs(static_cast<double>(x)));
  EXPECT_LT(bound, 0.3 * magnitude) << "a bound this wide would prove nothing";
  RecordProperty("difference", std::to_string(difference));
}

INSTANTIATE_TEST_SUITE_P(Models, EveryKind,
                         ::testing::Combine(::testing::Values("llama", "llama_untied_sharded",
                                                              "llama3_rope", "linear_rope",
                                                              "yarn_rope", "mistral", "qwen2_bias",
                                                              "qwen3_qk_norm"),
                                            ::testing::Values("ref", "cpu")),
                         [](const auto& info) {
                           return std::string(std::get<0>(info.param)) + "_" +
                                  std::get<1>(info.param);
                         });

class EveryRankCount
    : public ::testing::TestWithParam<std::tuple<int, const char*, std::vector<double>>> {};

TEST_P(EveryRankCount, AgreesWithOneRankWithinTheBound) {
  const auto& [ranks, device, weights] = GetParam();
  for (const char* model : {"llama", "mistral", "llama_untied_sharded", "qwen2_bias"}) {
    SCOPED_TRACE(model);
    const std::vector<std::int32_t> tokens = Tokens(model);
    RunnerOptions one = kSmallWindow;
    one.device = device;
    RunnerOptions many = one;
    many.ranks = ranks;
    many.rank_weights = weights;
    const double difference =
        MaxAbsDifference(Forward(model, tokens, one).logits, Forward(model, tokens, many).logits);
    EXPECT_LE(difference, Bound(model, tokens, one, RoundingOf(device)));
  }
}

std::string NameOfRanks(const testing::TestParamInfo<EveryRankCount::ParamType>& info) {
  const auto& [ranks, device, weights] = info.param;
  return absl::StrCat(device, "_ranks", ranks, weights.empty() ? "" : "_",
                      absl::StrJoin(weights, "_"));
}

INSTANTIATE_TEST_SUITE_P(Ranks, EveryRankCount,
                         ::testing::Values(std::tuple(2, "ref", std::vector<double>{}),
                                           std::tuple(2, "cpu", std::vector<double>{}),
                                           std::tuple(2, "ref", std::vector<double>{2, 1}),
                                           std::tuple(3, "ref", std::vector<double>{}),
                                           std::tuple(3, "cpu", std::vector<double>{1, 2, 1}),
                                           std::tuple(4, "ref", std::vector<double>{})),
                         NameOfRanks);

TEST(Transformer, DoesNotDependOnTheChunking) {
  const std::vector<std::int32_t> tokens = Tokens("llama");
  for (const char* device : {"ref", "cpu"}) {
    RunnerOptions options = kSmallWindow;
    options.device = device;
    const RunnerOutput whole = Forward("llama", tokens, options);
    const double bound = Bound("llama", tokens, options, RoundingOf(device));
    for (int chunk : {1, 7, 64, 200}) {
      options.chunk = chunk;
      EXPECT_LE(MaxAbsDifference(whole.logits, Forward("llama", tokens, options).logits), bound)
          << device << chunk;
    }
  }
}

TEST(Transformer, IsBitwiseIndependentOfTheChunkingWhenDeterministic) {
  const std::vector<std::int32_t> tokens = Tokens("llama");
  for (int ranks : {1, 2}) {
    RunnerOptions options = kSmallWindow;
    options.device = "cpu";
    options.deterministic = true;
    options.ranks = ranks;
    const RunnerOutput whole = Forward("llama", tokens, options);
    for (int chunk : {1, 33, 200}) {
      options.chunk = chunk;
      options.threads = 1 + chunk % 2;
      EXPECT_EQ(MaxAbsDifference(whole.logits, Forward("llama", tokens, options).logits), 0.0)
          << chunk;
    }
  }
}

TEST(Transformer, ForcedFullDoesNotDependOnWhereTheWindowEnds) {
  const std::vector<std::int32_t> tokens = Tokens("mistral");
  RunnerOptions options = kSmallWindow;
  const RunnerOutput small = Forward("mistral", tokens, options);
  EXPECT_GT(small.routing.rows[0], 0);
  options.window = 4096;
  const RunnerOutput dense = Forward("mistral", tokens, options);
  EXPECT_EQ(dense.routing.eligible(), 0);
  EXPECT_LE(MaxAbsDifference(small.logits, dense.logits),
            Bound("mistral", tokens, options, kF32Rounding));
  EXPECT_EQ(small.routing.bytes_read, small.routing.bytes_dense);
}

TEST(Transformer, LocalReadsLessAndDiffersOnlyWhereTheFarSpanIsNotEmpty) {
  const std::vector<std::int32_t> tokens = Tokens("llama");
  RunnerOptions options = kSmallWindow;
  const RunnerOutput full = Forward("llama", tokens, options);
  options.policy.route = Route::kLocal;
  const RunnerOutput local = Forward("llama", tokens, options);
  EXPECT_EQ(local.routing.rows[0], 0);
  EXPECT_EQ(local.routing.rows[2], local.routing.eligible());
  EXPECT_LT(local.routing.bytes_read, full.routing.bytes_read);
  const std::size_t first = 127 * full.vocab;  // a(127) = 64 > sinks
  const std::span<const float> a(full.logits), b(local.logits);
  EXPECT_EQ(MaxAbsDifference(a.first(first), b.first(first)), 0.0);
  EXPECT_GT(MaxAbsDifference(a.subspan(first), b.subspan(first)), 1e-3);
}

TEST(Transformer, IsCausal) {
  std::vector<std::int32_t> tokens = Tokens("llama");
  const RunnerOutput before = Forward("llama", tokens, kSmallWindow);
  for (std::size_t i = 150; i < tokens.size(); ++i) tokens[i] = (tokens[i] + 1) % 160;
  const RunnerOutput after = Forward("llama", tokens, kSmallWindow);
  const std::span<const float> a(before.logits), b(after.logits);
  const std::size_t n = 150 * before.vocab;
  EXPECT_EQ(MaxAbsDifference(a.first(n), b.first(n)), 0.0);
  EXPECT_GT(MaxAbsDifference(a.subspan(n), b.subspan(n)), 0.01);
}

TEST(Transformer, RejectsARankCountThatCannotWork) {
  const std::vector<std::int32_t> tokens = {1, 2, 3};
  RunnerOptions options;
  options.ranks = 2;
  options.rank_weights = {1, 2, 3};
  const absl::Status status = RunModel(ModelPath("llama"), tokens, options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("--rank-weights"));
}

}  // namespace
}  // namespace metattn::test
