// ModelConfig from GGUF files and Hugging Face directories.
#include "engine/model/config.h"

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
#include "nlohmann/json.hpp"
#include "tests/support/encode_values.h"
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
using Json = nlohmann::json;

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

absl::StatusOr<ModelConfig> DirectoryConfig(const test::TinyDirectoryOptions& options) {
  const std::string path = TempPath("_dir");
  auto checkpoint = Checkpoint::Open(test::WriteTinyDirectory(options, path));
  std::filesystem::remove_all(path);
  if (!checkpoint.ok()) return checkpoint.status();
  return ModelConfig::FromCheckpoint(**checkpoint);
}

absl::StatusOr<ModelConfig> DirectoryConfig(std::function<void(Json&)> edit,
                                            TinyModelOptions model = {}) {
  return DirectoryConfig({.model = std::move(model), .edit_config = std::move(edit)});
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

TEST(ModelConfigDirectory, ReadsEachFamily) {
  for (const bool bias : {false, true}) {
    for (const bool norm : {false, true}) {
      for (const bool tied : {false, true}) {
        for (const int shards : {1, 2}) {
          const auto config = DirectoryConfig(
              {.model = {.qkv_bias = bias, .qk_norm = norm, .tied = tied}, .shards = shards});
          ASSERT_THAT(config, Succeeds());
          EXPECT_EQ(config->architecture, norm ? "qwen3" : bias ? "qwen2" : "llama");
          EXPECT_EQ(config->qkv_bias, bias);
          EXPECT_EQ(config->qk_norm, norm);
          EXPECT_EQ(config->tied_embeddings, tied);
          EXPECT_FALSE(config->rope_interleaved);
        }
      }
    }
  }
}

TEST(ModelConfigDirectory, AgreesWithTheGgufOfTheSameModel) {
  const TinyModelOptions model = {.layers = 1, .head_dim = 32, .rope_base = 1e5f};
  const auto a = GgufConfig(model);
  const auto b = DirectoryConfig({.model = model});
  ASSERT_THAT(a, Succeeds());
  ASSERT_THAT(b, Succeeds());
  EXPECT_EQ(a->layers, b->layers);
  EXPECT_EQ(a->head_dim, b->head_dim);
  EXPECT_EQ(a->inv_freq, b->inv_freq);
  EXPECT_EQ(a->norm_eps, b->norm_eps);
  EXPECT_EQ(a->max_positions, b->max_positions);
}

TEST(ModelConfigDirectory, MistralSlidesSoItsWindowBoundsTheContext) {
  const auto mistral = [](Json sliding) {
    return [=](Json& json) {
      json["architectures"] = {"MistralForCausalLM"};
      json["sliding_window"] = sliding;
    };
  };
  auto config = DirectoryConfig(mistral(100));
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->architecture, "mistral");
  EXPECT_EQ(config->max_positions, 100);
  config = DirectoryConfig(mistral(nullptr));
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->max_positions, 512);
}

TEST(ModelConfigDirectory, QwenSlidesOnlyWhenItSaysSo) {
  for (const bool slides : {false, true}) {
    const auto config = DirectoryConfig(
        [=](Json& json) {
          json["use_sliding_window"] = slides;
          json["sliding_window"] = 200;
        },
        {.qkv_bias = true});
    ASSERT_THAT(config, Succeeds());
    EXPECT_EQ(config->max_positions, slides ? 200 : 512);
  }
}

TEST(ModelConfigDirectory, ReadsTheScalingVariantsOldAndNew) {
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    for (const char* type : {"type", "rope_type"}) {
      auto config = DirectoryConfig([&](Json& json) {
        json[key] = {{type, "linear"}, {"factor", 2}};
      });
      ASSERT_THAT(config, Succeeds());
      EXPECT_EQ(config->rope_scaling, "linear");
      EXPECT_DOUBLE_EQ(config->inv_freq[0], 0.5);
    }
  }
  auto config = DirectoryConfig([](Json& json) {
    json.erase("rope_theta");
    json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 256.0}};
  });
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->rope_scaling, "none");
  EXPECT_DOUBLE_EQ(config->inv_freq[4], 1.0 / 16);

  config = DirectoryConfig([](Json& json) {
    json["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 64}};
  });
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->rope_scaling, "llama3");
  EXPECT_DOUBLE_EQ(config->inv_freq[0], 1.0);
  EXPECT_DOUBLE_EQ(config->inv_freq[7], std::pow(10000.0, -14.0 / 16) / 8);
}

TEST(ModelConfigDirectory, YarnExtendsTheContext) {
  const auto config = DirectoryConfig([](Json& json) {
    json["rope_scaling"] = {
        {"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  });
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->max_positions, 2048);
  EXPECT_FLOAT_EQ(config->rope_scale, static_cast<float>(1 + 0.1 * std::log(4.0)));
  const auto implied = DirectoryConfig([](Json& json) {
    json["rope_scaling"] = {{"type", "yarn"}, {"original_max_position_embeddings", 128}};
  });
  ASSERT_THAT(implied, Succeeds());
  EXPECT_EQ(implied->max_positions, 512);
  EXPECT_FLOAT_EQ(implied->rope_scale, config->rope_scale) << "512 / 128 is the factor 4";
}

TEST(ModelConfigDirectory, DynamicScalingStopsAtTheOriginalLength) {
  const auto config = DirectoryConfig([](Json& json) {
    json["rope_scaling"] = {
        {"type", "dynamic"}, {"factor", 2.0}, {"original_max_position_embeddings", 256}};
  });
  ASSERT_THAT(config, Succeeds());
  EXPECT_EQ(config->max_positions, 256);
  EXPECT_DOUBLE_EQ(config->inv_freq[4], 0.01);
}

struct BadDirectory {
  const char* name;
  Code code;
  const char* message;
  std::function<void(Json&)> edit;
};
void PrintTo(const BadDirectory& bad, std::ostream* out) { *out << bad.name; }

class BadDirectoryConfig : public ::testing::TestWithParam<BadDirectory> {};

TEST_P(BadDirectoryConfig, IsAnErrorThatNamesTheKeyOrTensor) {
  EXPECT_THAT(DirectoryConfig(GetParam().edit), Fails(GetParam().code, GetParam().message));
}

std::function<void(Json&)> Set(const char* key, Json value) {
  return [=](Json& json) { json[key] = value; };
}

INSTANTIATE_TEST_SUITE_P(
    Keys, BadDirectoryConfig,
    ::testing::Values(
        BadDirectory{"NotAnObject", kInvalid, "config.json: is not a JSON object",
                     [](Json& json) { json = Json::array(); }},
        BadDirectory{"NoArchitectures", kInvalid, "'architectures' must be",
                     [](Json& json) { json.erase("architectures"); }},
        BadDirectory{"OtherArchitecture", kUnimplemented, "'architectures' is 'Gemma2ForCausalLM'",
                     Set("architectures", {"Gemma2ForCausalLM"})},
        BadDirectory{"OtherActivation", kUnimplemented, "'hidden_act' is 'gelu'",
                     Set("hidden_act", "gelu")},
        BadDirectory{"Quantised", kUnimplemented, "'quantization_config' means",
                     Set("quantization_config", {{"quant_method", "gptq"}})},
        BadDirectory{"NoLayers", kInvalid, "'num_hidden_layers' is missing",
                     [](Json& json) { json.erase("num_hidden_layers"); }},
        BadDirectory{"LayersText", kInvalid, "'num_hidden_layers' must be",
                     Set("num_hidden_layers", "2")},
        BadDirectory{"HiddenNegative", kInvalid, "'hidden_size' must be", Set("hidden_size", -64)},
        BadDirectory{"HiddenFraction", kInvalid, "'hidden_size' must be", Set("hidden_size", 64.5)},
        BadDirectory{"HiddenHuge", kInvalid, "'hidden_size' must be",
                     Set("hidden_size", 18446744073709551615ull)},
        BadDirectory{"Vocabulary", kInvalid,
                     "'token_embd.weight' has shape [320, 64], needed is [999, 64]",
                     Set("vocab_size", 999)},
        BadDirectory{"EpsZero", kInvalid, "'rms_norm_eps' must be", Set("rms_norm_eps", 0)},
        BadDirectory{"TieText", kInvalid, "'tie_word_embeddings' must be true or false",
                     Set("tie_word_embeddings", "yes")},
        BadDirectory{"HeadMissing", kInvalid, "'output.weight' is missing",
                     Set("tie_word_embeddings", false)},
        BadDirectory{"BaseTooSmall", kInvalid, "'rope_theta' must be", Set("rope_theta", 1)},
        BadDirectory{"PartialRotary", kUnimplemented, "'partial_rotary_factor' must be 1",
                     Set("partial_rotary_factor", 0.5)},
        BadDirectory{
            "PartialRotaryInside", kUnimplemented, "rope_parameters: key 'partial_rotary",
            Set("rope_parameters", {{"rope_type", "default"}, {"partial_rotary_factor", 0.5}})},
        BadDirectory{"ScalingText", kInvalid, "'rope_scaling' must be an object",
                     Set("rope_scaling", "linear")},
        BadDirectory{"ScalingUnknown", kUnimplemented,
                     "rope_scaling: key 'rope_type' is 'longrope'",
                     Set("rope_scaling", {{"type", "longrope"}})},
        BadDirectory{"ScalingNoFactor", kInvalid, "rope_scaling: key 'factor' is missing",
                     Set("rope_scaling", {{"type", "linear"}})},
        BadDirectory{"Llama3NoLength", kInvalid, "'original_max_position_embeddings' is missing",
                     Set("rope_scaling", {{"type", "llama3"}, {"factor", 8}})},
        BadDirectory{"QwenWithoutBias", kInvalid, "'blk.0.attn_q.bias' is missing",
                     Set("architectures", {"Qwen2ForCausalLM"})},
        BadDirectory{"QwenWithoutNorm", kInvalid, "'blk.0.attn_q_norm.weight' is missing",
                     Set("architectures", {"Qwen3ForCausalLM"})}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace metattn
