// ModelConfig from the config.json of Hugging Face directories.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "nlohmann/json.hpp"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_directory.h"
#include "tests/support/tiny_model.h"

namespace metattn {
namespace {

using test::Fails;
using test::Succeeds;
using test::TinyModelOptions;
using Code = absl::StatusCode;
using Json = nlohmann::json;

std::string TempPath(const std::string& suffix) {
  std::string name = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  for (char& c : name) c = c == '/' ? '_' : c;
  return ::testing::TempDir() + "config_test_" + name + suffix;
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

constexpr Code kInvalid = Code::kInvalidArgument;
constexpr Code kUnimplemented = Code::kUnimplemented;

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
  const std::string path = test::WriteTinyModel(model, TempPath(".gguf"));
  const auto gguf = Checkpoint::Open(path);
  std::filesystem::remove(path);
  ASSERT_THAT(gguf, Succeeds());
  const auto a = ModelConfig::FromCheckpoint(**gguf);
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
