// The real model against transformers in float32 (tests/support/fixtures/make_models.py real): NLL
// and logits of the project's LICENSE text, on one rank and on uneven slices. Skips where the model
// is absent.
#include "tests/support/real_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <sstream>

#include "engine/eval.h"
#include "engine/model/tokenizer.h"
#include "nlohmann/json.hpp"
#include "tests/support/model_runner.h"
#include "tests/support/source_path.h"

namespace metattn::test {
namespace {

std::string ReadText(const std::string& path) {
  std::ifstream in(SourcePath(path));
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class RealModel : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = RealModelPath();
    if (path_.empty()) GTEST_SKIP() << kNoRealModel;
    const auto checkpoint = Checkpoint::Open(path_);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    const auto tokenizer = Tokenizer::FromCheckpoint(**checkpoint);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    auto tokens = (*tokenizer)->Encode(ReadText("LICENSE"), {});
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    tokens_ = *std::move(tokens);
    reference_ = nlohmann::json::parse(ReadText("tests/support/fixtures/real.json"));
  }

  RunnerOutput Forward(std::span<const std::int32_t> tokens, const RunnerOptions& options) {
    auto output = RunModel(path_, tokens, options);
    EXPECT_TRUE(output.ok()) << output.status();
    return output.ok() ? *std::move(output) : RunnerOutput{};
  }

  // Nats per prediction over whole windows of the text, each from its own start.
  double Nll(std::size_t context, const RunnerOptions& options) {
    const std::size_t windows = tokens_.size() / context;
    double sum = 0;
    for (std::size_t w = 0; w < windows; ++w) {
      const auto window = std::span<const std::int32_t>(tokens_).subspan(w * context, context);
      const RunnerOutput output = Forward(window, options);
      const auto vocab = static_cast<std::size_t>(output.vocab);
      for (std::size_t i = 0; i + 1 < context; ++i) {
        sum += NegativeLogLikelihood({output.logits.data() + i * vocab, vocab}, window[i + 1]);
      }
    }
    return sum / static_cast<double>(windows * (context - 1));
  }

  std::string path_;
  std::vector<std::int32_t> tokens_;
  nlohmann::json reference_;
};

TEST_F(RealModel, TokenizesTheLicenceLikeTheReference) {
  EXPECT_EQ(tokens_.size(), reference_["tokens"].get<std::size_t>());
}

TEST_F(RealModel, ReachesTheReferenceNll) {
  const RunnerOptions options = {.device = "cpu", .threads = 2, .chunk = 256};
  EXPECT_NEAR(Nll(2048, options), reference_["nll"]["2048"].get<double>(), 0.005);
}

TEST_F(RealModel, ReachesTheReferenceNllOnTwoUnevenRanks) {
  const RunnerOptions options = {.ranks = 2, .rank_weights = {2, 1}, .device = "cpu", .chunk = 256};
  EXPECT_NEAR(Nll(1024, options), reference_["nll"]["1024"].get<double>(), 0.005);
}

TEST_F(RealModel, HasTheReferenceLogitsWithinTheMeasuredBound) {
  for (const char* isa : {"avx2", ""}) {  // f32 activations (slow), and the machine's best level
    const auto tokens = std::span<const std::int32_t>(tokens_).first(*isa ? 300 : 600);
    const RunnerOptions options = {.device = "cpu", .isa = isa, .threads = 2, .chunk = 200};
    const RunnerOutput output = Forward(tokens, options);
    const absl::StatusOr<double> bound = MeasuredBound(path_, tokens, options, 0x1p-9);
    ASSERT_TRUE(bound.ok()) << bound.status();
    double worst = 0;
    for (const auto& [row, best] : reference_["logits"].items()) {
      if (std::stoull(row) >= tokens.size()) continue;
      const float* logits = output.logits.data() + std::stoll(row) * output.vocab;
      for (std::size_t i = 0; i < best["ids"].size(); ++i) {
        worst = std::max(
            worst, std::abs(logits[best["ids"][i].get<int>()] - best["values"][i].get<double>()));
      }
    }
    EXPECT_LE(worst, *bound) << isa;
    std::printf("%s: worst difference %.3f, bound %.3f\n", *isa ? isa : "best", worst, *bound);
  }
}

TEST_F(RealModel, LocalAttentionReadsAFractionAndLosesLittle) {
  RunnerOptions options = {.device = "cpu", .threads = 2, .chunk = 256};
  const double full = Nll(2048, options);
  options.policy.route = Route::kLocal;
  const double local = Nll(2048, options);
  EXPECT_GT(local, full - 0.02);  // it reads less of the text
  EXPECT_LT(local, full + 1.0);
}

}  // namespace
}  // namespace metattn::test
