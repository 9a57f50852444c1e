#include "tests/support/tokenizer_fixtures.h"

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>
#include <vector>

#include "tests/support/source_path.h"

namespace metattn::test {
namespace {

std::string ReadFixture(const std::string& file) {
  std::ifstream in(FixturePath(file), std::ios::binary);
  if (!in) {
    std::cerr << "cannot read the fixture " << FixturePath(file) << "\n";
    std::abort();
  }
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

class TextCheckpoint final : public Checkpoint {
 public:
  explicit TextCheckpoint(const TokenizerFiles& files) : files_(files) {}
  Format format() const override { return Format::kHuggingFace; }
  const std::string& path() const override { return path_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(std::string_view) const override { return nullptr; }
  const Gguf* gguf() const override { return nullptr; }
  std::string_view config_json() const override { return files_.config_json; }
  std::string_view tokenizer_json() const override { return files_.tokenizer_json; }
  std::string_view tokenizer_config_json() const override { return files_.tokenizer_config_json; }

 private:
  const TokenizerFiles& files_;
  const std::string path_ = "dir";
  const std::vector<TensorInfo> tensors_;
};

}  // namespace

std::string FixturePath(const std::string& file) {
  return SourcePath("tests/support/fixtures/tokenizers/" + file);
}

nlohmann::json FixtureJson(const std::string& file) {
  return nlohmann::json::parse(ReadFixture(file));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerOf(const TokenizerFiles& files) {
  return Tokenizer::FromCheckpoint(TextCheckpoint(files));
}

TokenizerFiles FixtureFiles(const std::string& name) {
  return {ReadFixture(name + "/tokenizer.json"), ReadFixture(name + "/tokenizer_config.json"), ""};
}

std::unique_ptr<Tokenizer> FixtureTokenizer(const std::string& name) {
  auto tokenizer = TokenizerOf(FixtureFiles(name));
  if (!tokenizer.ok()) {
    std::cerr << "fixture " << name << ": " << tokenizer.status() << "\n";
    std::abort();
  }
  return *std::move(tokenizer);
}

}  // namespace metattn::test
