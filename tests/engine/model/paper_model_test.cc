// A whole model in the settings beside the retrofit's: exact windows, linear attention over every
// position, one decision per token, the paper's features, mixtures. What weights of one mechanism
// give, and the invariances (chunks, decode, ranks, rebuilt states, causality). A small random
// model and small random controllers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <ostream>
#include <string>

#include "tests/support/controller_writer.h"
#include "tests/support/decision_log.h"
#include "tests/support/model_runner.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

constexpr std::int64_t kTokens = 200;
const TinyModelOptions kModel = {
    .layers = 2, .hidden = 64, .heads = 4, .kv_heads = 2, .head_dim = 32, .ffn = 64};
constexpr std::int64_t kCells = kTokens * 2 * 2;  // (row, layer, KV head)

// The setting of the paper: nothing of it is the default.
ControllerOptions Paper() {
  return {.seed = 3,
          .window = 20,
          .sinks = 0,
          .hedgehog = false,
          .exact_window = true,
          .linear_all = true,
          .per_token = true,
          .paper = true,
          .mixture = true};
}

struct Setting {
  const char* name;
  ControllerOptions options;
  std::int64_t eligible;  // rows with something to decide
};

std::vector<Setting> Settings() {
  ControllerOptions block = {.seed = 4, .window = 64, .mixture = true};
  ControllerOptions exact = {.window = 50, .exact_window = true, .mixture = true};
  ControllerOptions all = {.linear_all = true, .per_token = true, .mixture = true};
  return {{"paper", Paper(), kTokens},
          {"block_far", block, kTokens - 127},           // a(127) = 64
          {"exact_far", exact, kTokens - (50 - 1) - 5},  // t - 49 > 4 sinks
          {"block_all", all, kTokens}};
}

struct Backend {
  const char* device;
  const char* isa;
  // Of activations. f32: a few epsilons, what another order of a sum makes; smaller ones flip so
  // few of the bf16 roundings of K and V that the bound depended on which. The widest kernels of
  // the cpu take bf16.
  double rounding;
};
std::ostream& operator<<(std::ostream& out, const Backend& b) {
  return out << b.device << (*b.isa != 0 ? "_" : "") << b.isa;
}

constexpr RoutePolicy kMixed{Route::kRouted, 0, 0}, kHard{Route::kRouted, 0, 1};

class PaperModel : public testing::TestWithParam<Backend> {
 protected:
  static void SetUpTestSuite() {
    root_ = testing::TempDir() + "/paper_model_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(kModel, root_ + "/model.gguf");
  }
  static void TearDownTestSuite() { std::filesystem::remove_all(root_); }

  static std::vector<std::int32_t> Tokens() {
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(kTokens));
    std::uint32_t x = 54321;
    for (std::int32_t& token : tokens) {
      x = x * 1664525 + 1013904223;
      token = static_cast<std::int32_t>(x >> 16) % 300;
    }
    return tokens;
  }

  static RunnerOptions Options(const ControllerOptions& controller, const RoutePolicy& policy) {
    RunnerOptions options;
    options.device = GetParam().device;
    options.isa = GetParam().isa;
    options.controller = WriteController(model_, root_ + "/controller", controller);
    options.policy = policy;
    options.window = controller.window;
    options.sinks = controller.sinks;
    options.chunk = 50;
    return options;
  }
  static RunnerOutput Run(const RunnerOptions& options,
                          const std::vector<std::int32_t>& tokens = Tokens()) {
    absl::StatusOr<RunnerOutput> output = RunModel(model_, tokens, options);
    EXPECT_TRUE(output.ok()) << output.status();
    return output.ok() ? *std::move(output) : RunnerOutput{};
  }
  static double Bound(const RunnerOptions& options) {
    const auto bound = MeasuredBound(model_, Tokens(), options, GetParam().rounding);
    EXPECT_TRUE(bound.ok()) << bound.status();
    return bound.value_or(0);
  }

  // The bytes of all decisions that a run recorded, rank after rank, headers and ids left out.
  static std::string root_, model_;
};

std::string PaperModel::root_, PaperModel::model_;

// The mean of three numbers that sum to one per routed row, and what they cost.
void ExpectSoftShares(const RoutingCounts& counts) {
  const auto rows = static_cast<double>(counts.routed_rows);
  EXPECT_NEAR(counts.weights[0] + counts.weights[1] + counts.weights[2], rows, 1e-5 * rows);
  for (const double weight : counts.weights) EXPECT_GT(weight, 0.02 * rows);
  EXPECT_GT(counts.expected_cost, counts.weights[0]);
  EXPECT_LT(counts.expected_cost, rows);
}

TEST_P(PaperModel, MixturesAgreeInChunksInDecodeOnRanksAndWithRebuiltStates) {
  for (const Setting& setting : Settings()) {
    const RunnerOptions options = Options(setting.options, kMixed);
    const RunnerOutput whole = Run(options);
    const double bound = Bound(options);
    EXPECT_EQ(whole.routing.eligible(), setting.eligible * kModel.layers * kModel.kv_heads);
    EXPECT_EQ(whole.routing.mixture_rows, whole.routing.eligible());
    EXPECT_EQ(whole.routing.routed_rows, whole.routing.eligible());
    ExpectSoftShares(whole.routing);
    RunnerOptions hard = options;
    hard.policy = kHard;
    EXPECT_GT(MaxAbsDifference(Run(hard).logits, whole.logits), 2 * bound)
        << setting.name << ": a bound this wide would prove nothing";
    const struct {
      int chunk, ranks;
      bool rebuild;
    } others[] = {{1, 1, false},  {7, 1, true},  {64, 1, false}, {200, 1, false},
                  {50, 2, false}, {33, 3, true}, {1, 2, false}};
    for (const auto& other : others) {
      SCOPED_TRACE(testing::Message() << setting.name << " chunk " << other.chunk << " ranks "
                                      << other.ranks << " rebuild " << other.rebuild);
      RunnerOptions again = options;
      again.chunk = other.chunk;
      again.ranks = other.ranks;
      again.rebuild_states = other.rebuild;
      const RunnerOutput output = Run(again);
      EXPECT_LE(MaxAbsDifference(output.logits, whole.logits), bound);
      EXPECT_EQ(output.routing.bytes_read, whole.routing.bytes_read);
      EXPECT_EQ(output.routing.flops, whole.routing.flops);
      EXPECT_EQ(output.routing.mixture_rows, whole.routing.mixture_rows);
      EXPECT_NEAR(output.routing.expected_cost, whole.routing.expected_cost,
                  0.01 * whole.routing.expected_cost);
    }
  }
}

TEST_P(PaperModel, IsBitwiseIndependentOfChunksAndCompanyWhenDeterministic) {
  for (const Setting& setting : Settings()) {
    for (const RoutePolicy& policy : {kMixed, RoutePolicy{Route::kRouted, 0, 0.9f}}) {
      RunnerOptions options = Options(setting.options, policy);
      options.deterministic = true;
      const RunnerOutput whole = Run(options);
      for (const int chunk : {1, 7, 64}) {
        SCOPED_TRACE(testing::Message() << setting.name << " chunk " << chunk);
        options.chunk = chunk;
        options.company = chunk == 64 ? 2 : 0;
        options.rebuild_states = chunk == 7;
        options.threads = 1 + chunk % 2;
        const RunnerOutput output = Run(options);
        EXPECT_EQ(MaxAbsDifference(whole.logits, output.logits), 0.0);
        EXPECT_EQ(output.routing.mixture_rows, whole.routing.mixture_rows);
      }
    }
  }
}

TEST_P(PaperModel, AllTheWeightOnOneMechanismIsThatMechanism) {
  for (const Setting& setting : Settings()) {
    for (const Route route : {Route::kFull, Route::kLinear, Route::kLocal}) {
      SCOPED_TRACE(testing::Message() << setting.name << " " << static_cast<int>(route));
      ControllerOptions only = setting.options;
      only.edit_json = [&](nlohmann::json& json) {
        for (nlohmann::json& layer : json["offsets"]) {
          for (nlohmann::json& head : layer) {
            head = {0, 0, 0};
            head[static_cast<std::size_t>(route)] = 1000;
          }
        }
      };
      RunnerOptions options = Options(only, kMixed);
      const RunnerOutput mixed = Run(options);
      EXPECT_EQ(mixed.routing.mixture_rows, mixed.routing.eligible());
      options.policy = {route, 0, 0};
      const RunnerOutput forced = Run(options);
      EXPECT_LE(MaxAbsDifference(mixed.logits, forced.logits), Bound(options));
      options.policy = {Route::kFull, 0, 0};
      options.controller.clear();
      const RunnerOutput dense = Run(options);
      if (route == Route::kFull) {
        EXPECT_LE(MaxAbsDifference(forced.logits, dense.logits), Bound(options));
      } else {
        EXPECT_GT(MaxAbsDifference(forced.logits, dense.logits), 0.02);
        EXPECT_LT(forced.routing.bytes_read, mixed.routing.bytes_read);
      }
    }
  }
}

TEST_P(PaperModel, IsCausal) {
  constexpr std::size_t kChanged = 150;
  for (const Setting& setting : Settings()) {
    for (const RoutePolicy& policy : {kMixed, kHard}) {
      std::vector<std::int32_t> tokens = Tokens();
      const RunnerOptions options = Options(setting.options, policy);
      const RunnerOutput before = Run(options);
      for (std::size_t i = kChanged; i < tokens.size(); ++i) tokens[i] = (tokens[i] + 1) % 300;
      const RunnerOutput after = Run(options, tokens);
      const std::span<const float> a(before.logits), b(after.logits);
      const std::size_t n = kChanged * static_cast<std::size_t>(before.vocab);
      EXPECT_EQ(MaxAbsDifference(a.first(n), b.first(n)), 0.0) << setting.name;
      EXPECT_GT(MaxAbsDifference(a.subspan(n), b.subspan(n)), 0.05) << setting.name;
    }
  }
}

TEST_P(PaperModel, EtaMovesRowsFromMixturesToOneMechanism) {
  const std::int64_t all = kCells;
  std::int64_t last = all + 1;
  for (const float eta : {0.0f, 0.8f, 0.95f, 1.0f}) {
    const RunnerOutput output = Run(Options(Paper(), {Route::kRouted, 0, eta}));
    EXPECT_EQ(output.routing.eligible(), all);
    EXPECT_LT(output.routing.mixture_rows, last) << eta;
    last = output.routing.mixture_rows;
    if (eta == 0) {
      EXPECT_EQ(last, all);
    }
  }
  EXPECT_EQ(last, 0) << "the gate is off";
  ControllerOptions careful = Paper();
  careful.mixture = false;
  const RunnerOutput full = Run(Options(careful, kMixed));
  EXPECT_EQ(full.routing.rows[0], all) << "without mixtures uncertain rows read everything";
}

TEST_P(PaperModel, OneDecisionPerTokenIsThatOfAllKvHeadsOnEveryRank) {
  RunnerOptions options = Options(Paper(), kHard);
  options.record_decisions = root_ + "/decisions";
  for (const int ranks : {1, 2}) {
    options.ranks = ranks;
    std::filesystem::remove_all(options.record_decisions);
    const RunnerOutput output = Run(options);
    for (const std::int64_t rows : output.routing.rows) EXPECT_GT(rows, kCells / 50);
    const auto decisions = ReadDecisions(options.record_decisions, kTokens).decisions;
    ASSERT_EQ(decisions.size(), static_cast<std::size_t>(kTokens * kModel.layers * 2));
    for (std::size_t i = 0; i < decisions.size(); i += 2) {
      ASSERT_EQ(decisions[i], decisions[i + 1]) << i;
    }
  }
}

TEST_P(PaperModel, ALogWithMixturesIsNotReplayed) {
  RunnerOptions options = Options(Paper(), kMixed);
  options.record_decisions = root_ + "/mixtures";
  Run(options);
  options.replay_decisions = std::exchange(options.record_decisions, "");
  const absl::Status status = RunModel(model_, Tokens(), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("mixtures cannot be replayed"));
}

INSTANTIATE_TEST_SUITE_P(Backends, PaperModel,
                         testing::Values(Backend{"ref", "", 0x1p-21},
                                         Backend{"cpu", "avx2", 0x1p-21},
                                         Backend{"cpu", "", 0x1p-9}),
                         [](const auto& info) { return testing::PrintToString(info.param); });

}  // namespace
}  // namespace metattn::test
