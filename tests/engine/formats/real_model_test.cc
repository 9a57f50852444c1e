// The header of the real model: what we know about the file from its publisher.
#include "tests/support/real_model.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>
#include <string>

#include "engine/formats/checkpoint.h"
#include "engine/formats/gguf.h"
#include "engine/model/config.h"

namespace metattn {
namespace {

class RealModel : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = test::RealModelPath();
    if (path.empty()) GTEST_SKIP() << test::kNoRealModel;
    auto opened = Checkpoint::Open(path);
    ASSERT_TRUE(opened.ok()) << opened.status();
    checkpoint_ = *std::move(opened);
  }
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(RealModel, HasThePublishedHyperParameters) {
  const auto config = ModelConfig::FromCheckpoint(*checkpoint_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->architecture, "llama");
  EXPECT_EQ(config->layers, 30);
  EXPECT_EQ(config->hidden, 576);
  EXPECT_EQ(config->ffn, 1536);
  EXPECT_EQ(config->vocab, 49152);
  EXPECT_EQ(config->heads, 9);
  EXPECT_EQ(config->kv_heads, 3);
  EXPECT_EQ(config->group(), 3);
  EXPECT_EQ(config->head_dim, 64);
  EXPECT_EQ(config->max_positions, 8192);
  EXPECT_FLOAT_EQ(config->norm_eps, 1e-5f);
  EXPECT_TRUE(config->tied_embeddings);
  EXPECT_FALSE(config->qkv_bias);
  EXPECT_FALSE(config->qk_norm);
  EXPECT_TRUE(config->rope_interleaved);
  EXPECT_EQ(config->rotary_dim, 64);
  EXPECT_EQ(config->rope_scaling, "none");
  ASSERT_EQ(config->inv_freq.size(), 32u);
  EXPECT_EQ(config->inv_freq[0], 1.0);
  EXPECT_NEAR(config->inv_freq[16], std::pow(1e5, -0.5), 1e-12);
}

TEST_F(RealModel, HasItsTensorsOfThreeTypesInsideTheFile) {
  std::map<DType, int> count;
  for (const TensorInfo& tensor : checkpoint_->tensors()) {
    ++count[tensor.dtype];
    ASSERT_FALSE(tensor.data.empty());
    ASSERT_EQ(checkpoint_->Find(tensor.name), &tensor);
  }
  EXPECT_EQ(count,
            (std::map<DType, int>{{DType::kF32, 61}, {DType::kQ8_0, 1}, {DType::kQ4_1, 210}}));
}

TEST_F(RealModel, CarriesItsTokenizer) {
  const Gguf& gguf = *checkpoint_->gguf();
  EXPECT_EQ(gguf.String("tokenizer.ggml.model"), "gpt2");
  EXPECT_EQ(gguf.String("tokenizer.ggml.pre"), "smollm");
  ASSERT_NE(gguf.StringArray("tokenizer.ggml.tokens"), nullptr);
  EXPECT_EQ(gguf.StringArray("tokenizer.ggml.tokens")->size(), 49152u);
  EXPECT_EQ((*gguf.StringArray("tokenizer.ggml.tokens"))[1], "<|im_start|>");
  EXPECT_EQ(gguf.StringArray("tokenizer.ggml.merges")->size(), 48900u);
  EXPECT_EQ(gguf.Int("tokenizer.ggml.bos_token_id"), 1);
  EXPECT_EQ(gguf.Bool("tokenizer.ggml.add_bos_token"), false);
}

}  // namespace
}  // namespace metattn
