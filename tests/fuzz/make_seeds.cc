// Writes the seeds of every fuzz target: small sound files from which the fuzzer sets out.
// Usage: fuzz_make_seeds DIRECTORY; makes DIRECTORY/<target>/...
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "tests/fuzz/controller_seeds.h"
#include "tests/fuzz/tokenizer_seeds.h"
#include "tests/support/tiny_directory.h"
#include "tests/support/tiny_model.h"

namespace metattn::test {
namespace {

namespace fs = std::filesystem;

TinyModelOptions Smallest(DType dtype, bool bias, bool norm) {
  return {.layers = 1,
          .hidden = 32,
          .heads = 2,
          .kv_heads = 1,
          .head_dim = 16,
          .ffn = 32,
          .vocab = kTinyLeastVocab,
          .dtype = dtype,
          .qkv_bias = bias,
          .qk_norm = norm};
}

void MakeGguf(const std::string& directory) {
  fs::create_directories(directory);
  WriteTinyModel(Smallest(DType::kQ4_0, false, false), directory + "/llama");
  WriteTinyModel(Smallest(DType::kQ4_1, true, false), directory + "/qwen2");
  WriteTinyModel(Smallest(DType::kQ8_0, false, true), directory + "/qwen3");
  TinyModelOptions scaled = Smallest(DType::kQ4_0, false, false);
  scaled.rope_freqs = {1, 1, 1, 1, 2, 4, 8, 8};
  scaled.edit = [](GgufWriter& w) {
    w.Text("llama.rope.scaling.type", "yarn");
    w.F32("llama.rope.scaling.factor", 4.0f);
    w.U32("llama.rope.scaling.original_context_length", 128);
    w.U32("general.alignment", 32);
    w.F32s("some.numbers", {1, 2, 3});
  };
  WriteTinyModel(scaled, directory + "/scaled");
}

void MakeDirectories(const std::string& root) {
  const std::string safetensors = root + "/safetensors_fuzz", config = root + "/config_fuzz";
  fs::create_directories(safetensors);
  fs::create_directories(config);
  const std::string model = root + "/model";
  const auto add = [&](const std::string& name, std::function<void(nlohmann::json&)> edit) {
    WriteTinyDirectory({.model = {.layers = 1}, .edit_config = std::move(edit)}, model);
    fs::copy_file(model + "/config.json", config + "/" + name,
                  fs::copy_options::overwrite_existing);
  };
  add("plain", nullptr);
  add("linear", [](nlohmann::json& json) {
    json["rope_scaling"] = {{"type", "linear"}, {"factor", 2.0}};
  });
  add("llama3", [](nlohmann::json& json) {
    json["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 8.0},
                            {"low_freq_factor", 1.0},
                            {"high_freq_factor", 4.0},
                            {"original_max_position_embeddings", 64}};
  });
  add("yarn", [](nlohmann::json& json) {
    json["rope_parameters"] = {
        {"rope_type", "yarn"},     {"rope_theta", 1e5},
        {"factor", 4.0},           {"mscale", 0.7},
        {"mscale_all_dim", 1.2},   {"truncate", false},
        {"beta_fast", 16},         {"beta_slow", 2},
        {"attention_factor", 1.1}, {"original_max_position_embeddings", 256}};
  });
  add("mistral", [](nlohmann::json& json) {
    json["architectures"] = {"MistralForCausalLM"};
    json["sliding_window"] = 128;
  });
  WriteTinyDirectory({.model = Smallest(DType::kBF16, true, true), .shards = 3}, model);
  for (const auto& file : fs::directory_iterator(model)) {
    if (file.path().extension() != ".safetensors") continue;
    fs::copy_file(file.path(), safetensors + "/" + file.path().filename().string(),
                  fs::copy_options::overwrite_existing);
  }
  fs::remove_all(model);
}

}  // namespace
}  // namespace metattn::test

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s DIRECTORY\n", argv[0]);
    return 2;
  }
  metattn::test::MakeGguf(std::string(argv[1]) + "/gguf_fuzz");
  metattn::test::MakeDirectories(argv[1]);
  metattn::test::MakeControllerSeeds(std::string(argv[1]) + "/controller_fuzz");
  metattn::test::MakeTokenizerSeeds(std::string(argv[1]) + "/tokenizer_fuzz");
  return 0;
}
