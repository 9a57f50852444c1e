// `metattn generate --device cuda` under mpirun, with CUDA and NCCL emulated: kernels, launchers,
// streams, NCCL and the engine above them, on 1, 2 and 3 ranks, give the tokens of `--device cpu`.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
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
// 3 KV heads: uneven on 2 ranks.
const TinyModelOptions kModel = {
    .layers = 2, .hidden = 96, .heads = 6, .kv_heads = 3, .head_dim = 32, .ffn = 96};

class CudaGenerate : public testing::Test {
 protected:
  void SetUp() override {
    root_ = testing::TempDir() + "/cuda_generate_" + std::to_string(getpid());
    std::filesystem::create_directories(root_);
    model_ = WriteTinyModel(kModel, root_ + "/model.gguf");
    controller_ = WriteController(model_, root_ + "/controller");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  // A prompt of 140 tokens: with 64 tokens of window its last rows and all that follow are routed.
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

  // The tokens of a run that must succeed.
  std::vector<int> Generate(int ranks, const std::string& device,
                            const std::vector<std::string>& flags,
                            const std::vector<std::string>& environment = {}) const {
    std::vector<std::string> all = {"--device", device};
    all.insert(all.end(), flags.begin(), flags.end());
    const auto start = std::chrono::steady_clock::now();
    MpiRun run(ranks, Command(environment, all));
    EXPECT_TRUE(run.WaitForExit(200)) << run.text();
    EXPECT_EQ(run.exit_code(), 0) << run.text();
    if (device == "cuda" && ranks > 1) {
      EXPECT_THAT(run.text(), HasSubstr("transport nccl"));
    }
    const std::size_t begin = run.text().find("{\""), end = run.text().find('\n', begin);
    if (begin == std::string::npos) return {};
    const auto object =
        nlohmann::json::parse(run.text().substr(begin, end - begin), nullptr, false);
    if (object.is_discarded()) return {};
    std::printf("%d ranks, %s: %.1f s\n", ranks, device.c_str(), SecondsSince(start));
    return object.at("token_ids").get<std::vector<int>>();
  }

  void ExpectTokensOfTheCpu(const std::vector<std::string>& flags) const {
    const std::vector<int> expected = Generate(1, "cpu", flags);
    ASSERT_EQ(expected.size(), static_cast<std::size_t>(kTokens));
    for (const int ranks : {1, 2, 3}) {
      for (const char* mask : {"EMU_EAGER_MASK=0", "EMU_EAGER_MASK=0xffffffff"}) {
        if (ranks == 1 && mask[std::string(mask).size() - 1] != '0') continue;
        SCOPED_TRACE(testing::Message() << ranks << " ranks, " << mask);
        EXPECT_EQ(Generate(ranks, "cuda", flags, {"EMU_DEVICES=3", mask}), expected);
      }
    }
  }

  void ExpectError(int ranks, const std::vector<std::string>& flags,
                   const std::string& says) const {
    MpiRun run(ranks, Command({"EMU_DEVICES=2"}, flags));
    EXPECT_TRUE(run.WaitForExit(100)) << run.text();
    EXPECT_NE(run.exit_code(), 0);
    EXPECT_THAT(run.text(), HasSubstr(says));
  }

  std::string root_, model_, controller_;
};

TEST_F(CudaGenerate, DenseTokensAreThoseOfTheCpu) { ExpectTokensOfTheCpu({}); }

TEST_F(CudaGenerate, RoutedTokensAreThoseOfTheCpu) {
  ExpectTokensOfTheCpu({"--controller", controller_});
}

TEST_F(CudaGenerate, RankDevicesChoosesThem) {
  const std::vector<int> expected = Generate(1, "cpu", {});
  EXPECT_EQ(Generate(2, "cuda", {"--rank-devices", "2,1"}, {"EMU_DEVICES=3"}), expected);
}

TEST_F(CudaGenerate, ErrorsNameRankAndDevice) {
  ExpectError(3, {"--device", "cuda"}, "rank 2, number 2 of 3 on host ");
  ExpectError(3, {"--device", "cuda"}, "CUDA device 2: this machine has 2");
  ExpectError(2, {"--device", "cuda", "--rank-devices", "0,5"},
              "CUDA device 5: this machine has 2");
  ExpectError(2, {"--device", "cuda", "--rank-devices", "1,1"}, "ranks 0 and 1 both have device 1");
  ExpectError(1, {"--device", "cuda", "--rank-devices", "0,1"}, "2 devices for 1 ranks");
  ExpectError(1, {"--rank-devices", "0"}, "--rank-devices is for --device cuda");
  ExpectError(1, {"--device", "cuda", "--deterministic"}, "--deterministic does not go with");
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
