#include "tests/fuzz/tokenizer_seeds.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/tokenizer_fixtures.h"

namespace metattn::test {
namespace {

// A few letters and merges, with everything else a fixture's file says about itself.
nlohmann::json Shrunk(const std::string& fixture) {
  nlohmann::json root = FixtureJson(fixture + "/tokenizer.json");
  nlohmann::json& model = root["model"];
  model["vocab"] = {{"a", 0}, {"b", 1}, {"\u0120", 2}, {"ab", 3}, {"\u0120a", 4}, {"<unk>", 5}};
  model["merges"] = {{"a", "b"}, {"\u0120", "a"}};
  int id = 6;
  for (auto& token : root["added_tokens"]) token["id"] = id++;
  return root;
}

}  // namespace

void MakeTokenizerSeeds(const std::string& directory) {
  std::filesystem::create_directories(directory);
  const auto write = [&](const std::string& name, const std::string& bytes) {
    std::ofstream(directory + "/" + name, std::ios::binary) << bytes;
  };
  for (const std::string name : {"gpt2", "unknown", "smollm", "llama-bpe", "qwen2"}) {
    nlohmann::json root = Shrunk(name);
    write(name, root.dump());
    root["added_tokens"][0]["lstrip"] = true;
    root["added_tokens"][0]["rstrip"] = true;
    root["added_tokens"][0]["normalized"] = true;
    root["added_tokens"][0]["content"] = " a";
    root["model"]["merges"] = {"a b", "\u0120 a"};
    root["model"]["ignore_merges"] = true;
    root["normalizer"] = {{"type", "NFC"}};
    write(name + "-edited", root.dump());
  }
  const auto texts = FixtureJson("texts.json").get<std::vector<std::string>>();
  for (std::size_t i = 0; i < texts.size(); ++i) {
    write("text" + std::to_string(i), static_cast<char>(i) + texts[i]);
  }
}

}  // namespace metattn::test
