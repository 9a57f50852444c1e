// A whole routed model on the CUDA backend in emulation, against the reference backend: with the
// reference's decisions the logits agree within the measured bound and greedy tokens are equal, in
// prefill and in decode. The bound is that of rounding to bf16: tensor cores get queries and
// softmax weights so, and in steps of many rows all activations. One rank: no communicator reads
// device memory yet.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "tests/emu/control.h"
#include "tests/support/controller_writer.h"
#include "tests/support/model_runner.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

constexpr int kTokens = 150;  // rows from 127 on are eligible: 64 tokens of window, 4 sinks
const TinyModelOptions kModel = {
    .layers = 2, .hidden = 96, .heads = 6, .kv_heads = 3, .head_dim = 32, .ffn = 96};
constexpr RoutePolicy kFull{}, kLinear{Route::kLinear, 0, 0}, kLocal{Route::kLocal, 0, 0};
constexpr RoutePolicy kRoutedPolicy{Route::kRouted, 0, 1};  // always sure

struct Setting {
  const char* name;
  RoutePolicy policy;
  int chunk;
};

class CudaModel : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/cuda_model_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(kModel, root_ + "/model.gguf");
    controller_ = WriteController(model_, root_ + "/controller");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  static std::vector<std::int32_t> Tokens() {
    std::vector<std::int32_t> tokens(kTokens);
    std::uint32_t x = 777;
    for (std::int32_t& token : tokens) {
      x = x * 1664525 + 1013904223;
      token = static_cast<std::int32_t>(x >> 16) % 300;
    }
    return tokens;
  }

  RunnerOptions Options(const Setting& setting) const {
    RunnerOptions options;
    options.controller = controller_;
    options.policy = setting.policy;
    options.window = 64;
    options.chunk = setting.chunk;
    return options;
  }

  std::string root_, model_, controller_;
};

struct Comparison {
  int tokens = 0, differ = 0, near_ties = 0;  // near ties: the two best closer than the bound
};

Comparison CompareGreedy(const RunnerOutput& a, const RunnerOutput& b, double bound) {
  Comparison c;
  for (std::size_t at = 0; at < a.logits.size(); at += static_cast<std::size_t>(a.vocab)) {
    const std::span<const float> x(a.logits.data() + at, static_cast<std::size_t>(a.vocab));
    const std::span<const float> y(b.logits.data() + at, static_cast<std::size_t>(a.vocab));
    std::vector<float> best(x.begin(), x.end());
    std::partial_sort(best.begin(), best.begin() + 2, best.end(), std::greater<>());
    const bool tie = best[0] - best[1] < 2 * bound;
    ++c.tokens;
    c.near_ties += tie ? 1 : 0;
    c.differ += !tie && std::max_element(x.begin(), x.end()) - x.begin() !=
                            std::max_element(y.begin(), y.end()) - y.begin()
                    ? 1
                    : 0;
  }
  return c;
}

TEST_F(CudaModel, LogitsAndGreedyTokensAreTheReferences) {
  const Setting settings[] = {{"full", kFull, 50},
                              {"local", kLocal, 64},
                              {"linear", kLinear, 50},
                              {"routed", kRoutedPolicy, 50},
                              {"routed", kRoutedPolicy, 150}};
  for (const Setting& setting : settings) {
    SCOPED_TRACE(testing::Message() << setting.name << " chunk " << setting.chunk);
    RunnerOptions options = Options(setting);
    options.record_decisions = root_ + "/decisions";
    std::filesystem::remove_all(options.record_decisions);
    ASSERT_THAT(RunModel(model_, Tokens(), options), Succeeds());
    options.record_decisions.clear();
    options.replay_decisions = root_ + "/decisions";
    const auto reference = RunModel(model_, Tokens(), options);
    ASSERT_THAT(reference, Succeeds());
    const auto bound = MeasuredBound(model_, Tokens(), options, 0x1p-9);
    ASSERT_THAT(bound, Succeeds());
    options.device = "cuda";
    const auto emulated = RunModel(model_, Tokens(), options);
    ASSERT_THAT(emulated, Succeeds());
    EXPECT_LE(MaxAbsDifference(reference->logits, emulated->logits), *bound);
    EXPECT_EQ(emulated->routing.bytes_read, reference->routing.bytes_read);
    const Comparison greedy = CompareGreedy(*reference, *emulated, *bound);
    EXPECT_EQ(greedy.differ, 0);
    EXPECT_LT(greedy.near_ties, greedy.tokens / 2);
    std::printf("%s, chunk %d: logits differ by %.2g, bound %.2g; %d of %d steps are near ties\n",
                setting.name, setting.chunk, MaxAbsDifference(reference->logits, emulated->logits),
                *bound, greedy.near_ties, greedy.tokens);
  }
}

// As the last of three sequences, which decode in steps padded to four.
TEST_F(CudaModel, DecodeGivesWhatPrefillGives) {
  RunnerOptions options = Options({"routed", kRoutedPolicy, 64});
  options.device = "cuda";
  options.deterministic = true;
  options.company = 2;
  options.record_decisions = root_ + "/decisions";
  const auto prefill = RunModel(model_, Tokens(), options);
  ASSERT_THAT(prefill, Succeeds());
  options.record_decisions.clear();
  options.replay_decisions = root_ + "/decisions";
  options.prompt = kTokens - 12;  // emulated steps cost by their launches
  options.chunk = 1;
  const auto decode = RunModel(model_, Tokens(), options);
  ASSERT_THAT(decode, Succeeds());
  // Every row's sums are taken in an order of its own, whatever else is in the step.
  EXPECT_EQ(MaxAbsDifference(prefill->logits, decode->logits), 0.0);
  EXPECT_EQ(decode->routing.bytes_read, prefill->routing.bytes_read);
  EXPECT_EQ(decode->routing.eligible(), prefill->routing.eligible());
}

// Decisions of its own: what the device decides for the padding is not counted.
TEST_F(CudaModel, PaddingDoesNotShow) {
  RunnerOptions options = Options({"routed", kRoutedPolicy, 1});
  options.device = "cuda";
  options.deterministic = true;
  options.prompt = kTokens - 4;
  options.company = 2;
  const auto padded = RunModel(model_, Tokens(), options);
  options.company = 0;
  const auto alone = RunModel(model_, Tokens(), options);
  ASSERT_THAT(padded, Succeeds());
  ASSERT_THAT(alone, Succeeds());
  EXPECT_EQ(MaxAbsDifference(padded->logits, alone->logits), 0.0);
  EXPECT_EQ(padded->routing.rows, alone->routing.rows);
  EXPECT_EQ(padded->routing.routed_rows, alone->routing.routed_rows);
  EXPECT_EQ(padded->routing.uncertainty, alone->routing.uncertainty);
  EXPECT_EQ(padded->routing.bytes_dense, alone->routing.bytes_dense);
}

// What a run of so many decode steps asks of the runtime.
struct Counted {
  std::int64_t graphs, kernels, records, copies, waits;
};

// Decoding after a prompt: what the runtime was called for in `many - few` replayed steps.
TEST_F(CudaModel, ADecodeStepIsOneGraphLaunchAndOneWait) {
  struct Case {
    RoutePolicy policy;
    bool greedy;
    int copies;
  };
  // In: the step's arrays. Out: logits and the best token (greedy: the best only), decisions and,
  // when routed, U and soft weights.
  for (const Case& c : {Case{kFull, false, 4}, Case{kFull, true, 3}, Case{kRoutedPolicy, false, 6},
                        Case{kRoutedPolicy, true, 5}}) {
    SCOPED_TRACE(testing::Message() << "copies " << c.copies);
    const auto decode = [&](int steps) {
      RunnerOptions options = Options({"", c.policy, 64});
      options.device = "cuda";
      options.greedy = c.greedy;
      const std::vector<std::int32_t> tokens = Tokens();
      options.prompt = kTokens - 20;
      options.chunk = 1;
      emu::ResetCounters();
      const auto output =
          RunModel(model_, {tokens.begin(), tokens.begin() + options.prompt + steps}, options);
      EXPECT_THAT(output, Succeeds());
      return Counted{emu::Calls("cudaGraphLaunch"), emu::Calls("cudaLaunchKernel"),
                     emu::Calls("cudaGraphInstantiate"), emu::Calls("cudaMemcpyAsync"),
                     emu::Calls("cudaStreamSynchronize")};
    };
    const Counted few = decode(6), many = decode(16);
    EXPECT_EQ(few.records, 1);
    EXPECT_EQ(many.records, 1);
    EXPECT_EQ(few.graphs, 5) << "the first step runs by itself, the second is recorded";
    EXPECT_EQ(many.graphs - few.graphs, 10);
    EXPECT_EQ(many.kernels, few.kernels) << "no kernel is launched beside the graph";
    EXPECT_EQ(many.copies - few.copies, 10 * c.copies);
    EXPECT_EQ(many.waits - few.waits, 10) << "the host waits once, for the step";
  }
}

TEST_F(CudaModel, BestTokensAreThoseOfTheLogits) {
  RunnerOptions options = Options({"", kRoutedPolicy, 64});
  options.device = "cuda";
  options.deterministic = true;
  const auto logits = RunModel(model_, Tokens(), options);
  options.greedy = true;
  const auto best = RunModel(model_, Tokens(), options);
  ASSERT_THAT(logits, Succeeds());
  ASSERT_THAT(best, Succeeds());
  ASSERT_EQ(best->best.size(), Tokens().size());
  EXPECT_TRUE(best->logits.empty());
  auto row = logits->logits.begin();
  for (const std::int32_t token : best->best) {
    EXPECT_EQ(std::max_element(row, row + logits->vocab) - row, token);
    row += logits->vocab;
  }
}

}  // namespace
}  // namespace metattn::test
