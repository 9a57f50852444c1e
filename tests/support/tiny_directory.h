// The tiny model of tiny_model.h as a Hugging Face directory: config.json, safetensors (sharded on
// demand), tokenizer.json, tokenizer_config.json. Same weights, so both forms must give the same
// logits. Aborts on options that cannot be.
#pragma once

#include <functional>
#include <string>

#include "nlohmann/json.hpp"
#include "tests/support/tiny_model.h"

namespace metattn::test {

struct TinyDirectoryOptions {
  TinyModelOptions model;  // dtype f32, f16 or bf16; rope_freqs and edit are not used
  int shards = 1;          // more than one: with an index
  // Called on config.json before it is written.
  std::function<void(nlohmann::json&)> edit_config;
};

// Creates (or empties) `directory`, writes the files and returns it.
std::string WriteTinyDirectory(const TinyDirectoryOptions& options, const std::string& directory);

// "blk.3.ffn_up.weight" -> "model.layers.3.mlp.up_proj.weight".
std::string HuggingFaceName(const std::string& canonical);

void WriteFile(const std::string& path, const std::string& bytes);
std::string ReadFile(const std::string& path);

}  // namespace metattn::test
