// ModelConfig from GGUF files and Hugging Face directories.
#include "engine/model/config.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "engine/formats/checkpoint.h"
#include "tests/support/tiny_model.h"

namespace metattn {
namespace {

absl::StatusOr<ModelConfig> ConfigOf(const test::TinyModelOptions& options) {
  const std::string path = ::testing::TempDir() + "config_test_" +
                           ::testing::UnitTest::GetInstance()->current_test_info()->name() +
                           ".gguf";
  auto checkpoint = Checkpoint::Open(test::WriteTinyModel(options, path));
  std::filesystem::remove(path);  // the mapping lives on
  if (!checkpoint.ok()) return checkpoint.status();
  return ModelConfig::FromCheckpoint(**checkpoint);
}

TEST(GgufConfig, ReadsEveryVariantOfTheTinyModel) {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    for (const bool bias : {false, true}) {
      for (const bool norm : {false, true}) {
        for (const bool tied : {false, true}) {
          const auto config =
              ConfigOf({.dtype = dtype, .qkv_bias = bias, .qk_norm = norm, .tied = tied});
          ASSERT_TRUE(config.ok()) << config.status();
          EXPECT_EQ(config->qkv_bias, bias);
          EXPECT_EQ(config->qk_norm, norm);
          EXPECT_EQ(config->tied_embeddings, tied);
          EXPECT_EQ(config->rope_interleaved, !bias && !norm);
          EXPECT_EQ(config->architecture, norm ? "qwen3" : bias ? "qwen2" : "llama");
        }
      }
    }
  }
}

}  // namespace
}  // namespace metattn
