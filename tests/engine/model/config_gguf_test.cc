// ModelConfig from GGUF files.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_directory.h"
#include "tests/support/tiny_model.h"

namespace metattn {
namespace {

using test::Fails;
using test::GgufWriter;
using test::Succeeds;
using test::TinyModelOptions;
using Code = absl::StatusCode;

std::string TempPath(const std::string& suffix) {
  std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  for (char& c : name) c = c == '/' ? '_' : c;
  return ::testing::TempDir() + "config_test_" + name + suffix;
}

absl::StatusOr<ModelConfig> GgufConfig(const TinyModelOptions& options) {
  const std::string path = TempPath(".gguf");
  auto checkpoint = Checkpoint::Open(test::WriteTinyModel(options, path));
  std::filesystem::remove(path);  // the mapping lives on
  if (!checkpoint.ok()) return checkpoint.status();
  return ModelConfig::FromCheckpoint(**checkpoint);
}

TEST(ModelConfigGguf, ReadsEveryVariantOfTheTinyModel) {
  for (const DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    for (const bool bias : {false, true}) {
      for (const bool norm : {false, true}) {
        for (const bool tied : {false, true}) {
          const auto config =
              GgufConfig({.dtype = dtype, .qkv_bias = bias, .qk_norm = norm, .tied = tied});
          ASSERT_THAT(config, Succeeds());
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

TEST(ModelConfigGguf, TakesSizesFromTheFile) {
  const auto config = GgufConfig({.layers = 3,
                                  .hidden = 96,
                                  .heads = 6,
                                  .kv_heads = 3,
                                  .head_dim = 32,
                                  .ffn = 160,
                                  .vocab = 300,
                                  .max_positions = 777,
                                  .rope_base = 50000.0f});
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->name, "tiny");
  EXPECT_EQ(config->layers, 3);
  EXPECT_EQ(config->hidden, 96);
  EXPECT_EQ(config->heads, 6);
  EXPECT_EQ(config->kv_heads, 3);
  EXPECT_EQ(config->head_dim, 32);
  EXPECT_EQ(config->ffn, 160);
  EXPECT_EQ(config->vocab, 300);
  EXPECT_EQ(config->max_positions, 777);
  EXPECT_EQ(config->rotary_dim, 32);
  EXPECT_DOUBLE_EQ(config->inv_freq[8], std::pow(50000.0, -0.5));
}

TEST(ModelConfigGguf, ReadsTheScalingVariants) {
  const std::string s = "llama.rope.scaling.";
  auto config = GgufConfig({.edit = [&](GgufWriter& w) {
    w.Text(s + "type", "linear");
    w.F32(s + "factor", 4.0f);
  }});
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->rope_scaling, "linear");
  EXPECT_DOUBLE_EQ(config->inv_freq[0], 0.25);

  config = GgufConfig({.edit = [&](GgufWriter& w) { w.F32("llama.rope.scale_linear", 2.0f); }});
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->rope_scaling, "linear");
  EXPECT_DOUBLE_EQ(config->inv_freq[0], 0.5);

  config = GgufConfig({.edit = [&](GgufWriter& w) {
    w.Text(s + "type", "yarn");
    w.F32(s + "factor", 4.0f);
    w.U32(s + "original_context_length", 128);
  }});
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->rope_scaling, "yarn");
  EXPECT_DOUBLE_EQ(config->inv_freq[0], 1.0);
  EXPECT_NEAR(config->inv_freq[7], std::pow(10000.0, -14.0 / 16) / 4, 1e-12);
  EXPECT_FLOAT_EQ(config->rope_scale, static_cast<float>(1 + 0.1 * std::log(4.0)));

  config = GgufConfig({.rope_freqs = {1, 1, 1, 1, 2, 4, 8, 8}});
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->rope_scaling, "llama3");
  EXPECT_DOUBLE_EQ(config->inv_freq[7], std::pow(10000.0, -14.0 / 16) / 8);
}

struct BadGguf {
  const char* name;
  Code code;
  const char* message;
  std::function<void(GgufWriter&)> edit;
};
void PrintTo(const BadGguf& bad, std::ostream* out) { *out << bad.name; }

class BadGgufConfig : public ::testing::TestWithParam<BadGguf> {};

TEST_P(BadGgufConfig, IsAnErrorThatNamesTheKeyOrTensor) {
  EXPECT_THAT(GgufConfig({.edit = GetParam().edit}), Fails(GetParam().code, GetParam().message));
}

std::function<void(GgufWriter&)> SetU32(const char* key, std::uint32_t value) {
  return [=](GgufWriter& w) {
    w.Remove(key);
    w.U32(key, value);
  };
}
std::function<void(GgufWriter&)> SetF32(const char* key, float value) {
  return [=](GgufWriter& w) {
    w.Remove(key);
    w.F32(key, value);
  };
}
std::function<void(GgufWriter&)> SetText(const char* key, const char* value) {
  return [=](GgufWriter& w) {
    w.Remove(key);
    w.Text(key, value);
  };
}
std::function<void(GgufWriter&)> Drop(const char* key) {
  return [=](GgufWriter& w) { w.Remove(key); };
}

constexpr Code kInvalid = Code::kInvalidArgument;
constexpr Code kUnimplemented = Code::kUnimplemented;

INSTANTIATE_TEST_SUITE_P(
    Keys, BadGgufConfig,
    ::testing::Values(
        BadGguf{"NoArchitecture", kInvalid, "'general.architecture' is missing",
                Drop("general.architecture")},
        BadGguf{"OtherArchitecture", kUnimplemented, "'general.architecture' is 'gemma'",
                SetText("general.architecture", "gemma")},
        BadGguf{"NoLayers", kInvalid, "'llama.block_count' is missing", Drop("llama.block_count")},
        BadGguf{"ZeroLayers", kInvalid, "'llama.block_count' must be a whole number from 1",
                SetU32("llama.block_count", 0)},
        BadGguf{"ManyLayers", kInvalid, "'llama.block_count' must be",
                SetU32("llama.block_count", 0x80000002)},
        BadGguf{"LayersAsText", kInvalid, "'llama.block_count' must be",
                SetText("llama.block_count", "2")},
        BadGguf{"LayersAsNumber", kInvalid, "'llama.block_count' must be",
                SetF32("llama.block_count", 2.0f)},
        BadGguf{"MissingLayer", kInvalid, "'blk.2.attn_norm.weight' is missing",
                SetU32("llama.block_count", 3)},
        BadGguf{"LayerTooMany", kUnimplemented, "'blk.1.", SetU32("llama.block_count", 1)},
        BadGguf{"WrongWidth", kInvalid, "needed is [320, 65]",
                SetU32("llama.embedding_length", 65)},
        BadGguf{"WrongFfn", kInvalid,
                "'blk.0.ffn_gate.weight' has shape [96, 64], needed is [97, 64]",
                SetU32("llama.feed_forward_length", 97)},
        BadGguf{"HeadsNotAMultiple", kInvalid, "4 query heads are not a multiple of 3 KV heads",
                SetU32("llama.attention.head_count_kv", 3)},
        BadGguf{"KvHeadsMore", kInvalid, "4 query heads are not a multiple of 8 KV heads",
                SetU32("llama.attention.head_count_kv", 8)},
        BadGguf{"ValuesDiffer", kUnimplemented, "'llama.attention.value_length' differs",
                SetU32("llama.attention.value_length", 32)},
        BadGguf{"NoEps", kInvalid, "'llama.attention.layer_norm_rms_epsilon' is missing",
                Drop("llama.attention.layer_norm_rms_epsilon")},
        BadGguf{"NegativeEps", kInvalid, "'llama.attention.layer_norm_rms_epsilon' must be",
                SetF32("llama.attention.layer_norm_rms_epsilon", -1e-5f)},
        BadGguf{"NanEps", kInvalid, "'llama.attention.layer_norm_rms_epsilon' must be",
                SetF32("llama.attention.layer_norm_rms_epsilon", std::nanf(""))},
        BadGguf{"BaseAsInteger", kInvalid, "'llama.rope.freq_base' must be",
                SetU32("llama.rope.freq_base", 10000)},
        BadGguf{"BaseInfinite", kInvalid, "'llama.rope.freq_base' must be",
                SetF32("llama.rope.freq_base", INFINITY)},
        BadGguf{"RotaryOdd", kInvalid, "rotary dimension 15",
                SetU32("llama.rope.dimension_count", 15)},
        BadGguf{"RotaryTooLarge", kInvalid, "rotary dimension 18",
                SetU32("llama.rope.dimension_count", 18)},
        BadGguf{"VocabularyDiffers", kInvalid, "'token_embd.weight' has shape [320, 64]",
                SetU32("llama.vocab_size", 321)},
        BadGguf{"TokensDiffer", kInvalid, "'tokenizer.ggml.tokens' has 2 tokens",
                [](GgufWriter& w) {
                  w.Remove("tokenizer.ggml.tokens");
                  w.Texts("tokenizer.ggml.tokens", {"a", "b"});
                }},
        BadGguf{"UnknownHyperParameter", kUnimplemented, "'llama.attention.sinks'",
                SetU32("llama.attention.sinks", 4)},
        BadGguf{"DamagedPrefix", kUnimplemented, "'mlama.rope.freq_base'",
                [](GgufWriter& w) {
                  w.Remove("llama.rope.freq_base");
                  w.F32("mlama.rope.freq_base", 5e5f);
                }},
        BadGguf{"Experts", kUnimplemented, "'llama.expert_count' means",
                SetU32("llama.expert_count", 8)},
        BadGguf{"NotCausal", kUnimplemented, "'llama.attention.causal' must be true",
                [](GgufWriter& w) { w.Bool("llama.attention.causal", false); }},
        BadGguf{"ScalingUnknown", kUnimplemented, "'llama.rope.scaling.type' is 'longrope'",
                SetText("llama.rope.scaling.type", "longrope")}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Tensors, BadGgufConfig,
    ::testing::Values(
        BadGguf{"NoEmbedding", kInvalid, "'token_embd.weight' is missing",
                [](GgufWriter& w) { w.Find("token_embd.weight")->name = "token_embe.weight"; }},
        BadGguf{"UnknownTensor", kUnimplemented, "'blk.0.attn_output.bias' is not part",
                [](GgufWriter& w) {
                  w.Add("blk.0.attn_output.bias", {8}, DType::kF32, std::string(32, '\0'));
                }},
        BadGguf{"HalfABias", kInvalid, "'blk.0.attn_k.bias' is missing",
                [](GgufWriter& w) {
                  w.Add("blk.0.attn_q.bias", {64}, DType::kF32, std::string(256, '\0'));
                }},
        BadGguf{"IntegerMatrix", kUnimplemented, "'blk.1.ffn_up.weight' has type i32",
                [](GgufWriter& w) { w.Find("blk.1.ffn_up.weight")->type = 26; }},
        BadGguf{"QuantisedNorm", kUnimplemented, "'output_norm.weight' has type q8_0",
                [](GgufWriter& w) {
                  w.Find("output_norm.weight")->type = 8;
                  w.Find("output_norm.weight")->data = std::string(68, '\0');
                }},
        BadGguf{"FrequenciesOfWrongLength", kInvalid, "'rope_freqs.weight' has shape [4]",
                [](GgufWriter& w) {
                  w.Add("rope_freqs.weight", {4}, DType::kF32, std::string(16, '\0'));
                }},
        BadGguf{"FrequenciesZero", kInvalid, "divisor is not positive",
                [](GgufWriter& w) {
                  w.Add("rope_freqs.weight", {8}, DType::kF32, std::string(32, '\0'));
                }}),
    [](const auto& info) { return info.param.name; });

// Flips one bit of a file at a time and puts it right again.
class BitFlipper {
 public:
  explicit BitFlipper(std::string path) : path_(std::move(path)), bytes_(test::ReadFile(path_)) {}
  // How many flips of bytes [begin, end) still give a configuration.
  int Accepted(std::size_t begin, std::size_t end) {
    int accepted = 0;
    for (std::size_t bit = begin * 8; bit < end * 8; ++bit) {
      Put(bit / 8, static_cast<char>(bytes_[bit / 8] ^ (1 << (bit % 8))));
      const auto checkpoint = Checkpoint::Open(path_);
      if (checkpoint.ok() && ModelConfig::FromCheckpoint(**checkpoint).ok()) ++accepted;
      Put(bit / 8, bytes_[bit / 8]);
    }
    return accepted;
  }

 private:
  void Put(std::size_t at, char byte) {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(at));
    file.put(byte);
  }
  const std::string path_, bytes_;
};

TEST(ModelConfigGguf, AFlippedBitInHyperParametersOrDirectoryIsAnErrorOrAPlainNumber) {
  const TinyModelOptions model = {
      .layers = 1, .hidden = 32, .head_dim = 8, .ffn = 32, .edit = [](GgufWriter& w) {
        for (const char* key : {"model", "pre", "tokens", "token_type", "merges", "bos_token_id",
                                "eos_token_id", "add_bos_token"}) {
          w.Remove("tokenizer.ggml." + std::string(key));  // the tokenizer has its own tests
        }
        w.Remove("tokenizer.chat_template");
      }};
  const std::string path = test::WriteTinyModel(model, TempPath(".gguf"));
  const std::size_t directory = test::ReadFile(path).find("token_embd.weight") - 8;
  BitFlipper flipper(path);
  EXPECT_EQ(flipper.Accepted(directory, test::TinyModel(model).Header().size()), 0)
      << "the tensor directory has no bit to spare";
  // The key general.name and its text; context_length, epsilon and frequency base, whose values are
  // anyone's guess.
  EXPECT_LE(flipper.Accepted(0, directory), (12 + 4 + 4 + 4 + 4) * 8);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace metattn
