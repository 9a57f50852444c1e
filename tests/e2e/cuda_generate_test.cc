// `metattn generate --device cuda` under mpirun, with CUDA and NCCL emulated: kernels, launchers,
// streams, NCCL and the engine above them, on 1, 2 and 3 ranks, give the tokens of `--device cpu`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/support/controller_writer.h"
#include "tests/support/mpirun.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

using ::testing::HasSubstr;

constexpr int kTokens = 16;
constexpr char kLazy[] = "EMU_EAGER_MASK=0", kEager[] = "EMU_EAGER_MASK=0xffffffff";
// 3 KV heads: uneven on 2 ranks.
const TinyModelOptions kModel = {
    .layers = 2, .hidden = 96, .heads = 6, .kv_heads = 3, .head_dim = 32, .ffn = 96, .tied = false};

struct Output {
  std::vector<int> tokens;
  nlohmann::json routing;
};

class CudaGenerate : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/cuda_generate_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(kModel, root_ + "/model.gguf");
    controller_ = WriteController(model_, root_ + "/controller");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  // A prompt of some 128 tokens: with 64 tokens of window its last rows and all that follow are
  // routed. Variables of the emulation, then the program.
  std::vector<std::string> Command(const std::vector<std::string>& environment,
                                   const std::vector<std::string>& flags) const {
    std::vector<std::string> words = {"env"};
    words.insert(words.end(), environment.begin(), environment.end());
    std::string prompt;
    for (int i = 0; i < 140; ++i) prompt += static_cast<char>('a' + i * i % 23);
    words.insert(words.end(),
                 {METATTN_EMULATED, "generate", prompt, "--model", model_, "--window", "64",
                  "--threads", "1", "--max-model-len", "192", "--temperature", "0", "--ignore-eos",
                  "--max-tokens", std::to_string(kTokens), "--kv-cache-memory", "16MiB", "--json"});
    words.insert(words.end(), flags.begin(), flags.end());
    return words;
  }

  // A run that must succeed.
  Output Generate(int ranks, const std::vector<std::string>& flags,
                  const std::vector<std::string>& environment = {}) const {
    const auto start = std::chrono::steady_clock::now();
    MpiRun run(ranks, Command(environment, flags));
    EXPECT_TRUE(run.WaitForExit(200)) << run.text();
    EXPECT_EQ(run.exit_code(), 0) << run.text();
    if (!environment.empty() && ranks > 1) {
      EXPECT_THAT(run.text(), HasSubstr("transport nccl"));
    }
    const std::size_t begin = run.text().find("{\""), end = run.text().find('\n', begin);
    if (begin == std::string::npos) return {};
    const auto object =
        nlohmann::json::parse(run.text().substr(begin, end - begin), nullptr, /*exceptions=*/false);
    if (object.is_discarded()) return {};
    const Output output = {object.at("token_ids"), object.at("routing")};
    std::printf("%d ranks, %s: %.1f s, tokens", ranks,
                environment.empty() ? "cpu" : environment.back().c_str(), SecondsSince(start));
    for (const int token : output.tokens) std::printf(" %d", token);
    std::printf("; %s\n", output.routing.dump().c_str());
    return output;
  }

  // One instruction set, so that the tokens are the same on every machine.
  Output OnCpu(std::vector<std::string> flags) const {
    flags.insert(flags.end(), {"--device", "cpu", "--cpu-isa", "avx2"});
    return Generate(1, flags);
  }

  Output OnCuda(int ranks, const char* mask, std::vector<std::string> flags) const {
    flags.insert(flags.end(), {"--device", "cuda"});
    return Generate(ranks, flags, {"EMU_DEVICES=3", mask});
  }

  // Equal shares whatever the emulated devices seem to be worth.
  void ExpectTheCpus(std::vector<std::string> flags) const {
    const bool routed = !flags.empty();
    flags.insert(flags.end(), {"--probe-ranks", "false"});
    const Output expected = OnCpu(flags);
    ASSERT_EQ(expected.tokens.size(), static_cast<std::size_t>(kTokens));
    EXPECT_GT(std::set<int>(expected.tokens.begin(), expected.tokens.end()).size(), 4u)
        << "a text that tells nothing";
    constexpr struct {
      int ranks;
      const char* mask;
    } kRuns[] = {{1, kLazy}, {2, kLazy}, {2, kEager}, {3, kLazy}};
    for (const auto& run : kRuns) {
      SCOPED_TRACE(testing::Message() << run.ranks << " ranks, " << run.mask);
      const Output output = OnCuda(run.ranks, run.mask, flags);
      EXPECT_EQ(output.tokens, expected.tokens);
      for (const char* mechanism : {"full", "linear", "local"}) {
        if (routed) {
          EXPECT_GT(expected.routing.at(mechanism), 0) << mechanism;
        }
        EXPECT_NEAR(output.routing.at(mechanism), expected.routing.at(mechanism), 0.05);
      }
    }
  }

  void ExpectError(int ranks, const std::vector<std::string>& flags, const std::string& says,
                   const char* cards = "EMU_SM=90") const {
    MpiRun run(ranks, Command({"EMU_DEVICES=2", cards}, flags));
    EXPECT_TRUE(run.WaitForExit(100)) << run.text();
    EXPECT_NE(run.exit_code(), 0);
    EXPECT_THAT(run.text(), HasSubstr(says));
  }

  std::string root_, model_, controller_;
};

TEST_F(CudaGenerate, DenseTokensAreThoseOfTheCpu) { ExpectTheCpus({}); }

TEST_F(CudaGenerate, RoutedTokensAreThoseOfTheCpu) { ExpectTheCpus({"--controller", controller_}); }

// Shares of the model as measured, too.
TEST_F(CudaGenerate, RankDevicesChoosesThem) {
  EXPECT_EQ(OnCuda(2, kEager, {"--rank-devices", "2,1"}).tokens, OnCpu({}).tokens);
}

TEST_F(CudaGenerate, ErrorsNameRankAndDevice) {
  ExpectError(3, {"--device", "cuda"}, "rank 2, number 2 of 3 on host ");
  ExpectError(3, {"--device", "cuda"}, "CUDA device 2: this machine has 2");
  ExpectError(2, {"--device", "cuda"}, "CUDA device 1 has compute capability 7.5, which",
              "EMU_SM=75");
  ExpectError(2, {"--device", "cuda", "--rank-devices", "0,5"},
              "CUDA device 5: this machine has 2");
  ExpectError(2, {"--device", "cuda", "--rank-devices", "1,1"}, "ranks 0 and 1 both have device 1");
  ExpectError(1, {"--device", "cuda", "--rank-devices", "0,1"}, "2 devices for 1 ranks");
  ExpectError(1, {"--rank-devices", "0"}, "--rank-devices is for --device cuda");
  ExpectError(2, {"--device", "cuda", "--deterministic"}, "cuda runs on one rank only");
}

TEST_F(CudaGenerate, ASilentRankEndsTheOthers) {
  MpiRun run(2, Command({"EMU_DEVICES=2", "EMU_NCCL_LOST=1@8"},
                        {"--device", "cuda", "--collective-timeout", "3"}));
  EXPECT_TRUE(run.WaitForExit(100)) << run.text();
  EXPECT_EQ(run.exit_code(), 75) << run.text();  // kPeerLostExit
  EXPECT_THAT(run.text(), HasSubstr("a peer is lost or wedged; ending this process"));
}

}  // namespace
}  // namespace metattn::test
