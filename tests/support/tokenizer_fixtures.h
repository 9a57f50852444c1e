// Tokenizer fixtures made with Hugging Face tokenizers (support/fixtures/tokenizers), and
// tokenizers from text without files. Aborts the test on a fixture that cannot be read. Not thread
// safe.
#pragma once

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "engine/model/tokenizer.h"

namespace metattn::test {

std::string FixturePath(const std::string& file);  // of support/fixtures/tokenizers
nlohmann::json FixtureJson(const std::string& file);

// The three files of a Hugging Face directory as text, without the directory ("dir" in messages).
struct TokenizerFiles {
  std::string tokenizer_json, tokenizer_config_json, config_json;
};
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerOf(const TokenizerFiles& files);

TokenizerFiles FixtureFiles(const std::string& name);
std::unique_ptr<Tokenizer> FixtureTokenizer(const std::string& name);

}  // namespace metattn::test
