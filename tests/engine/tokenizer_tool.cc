// The tokenizer as a filter, for differential tests against other implementations and for timing.
// MODEL is a model, or a folder with a tokenizer.json and perhaps no weights.
//
//   tokenizer_tool MODEL encode [raw|special]   stdin: one JSON string a line; stdout: one JSON
//                                               array of ids a line. `special` reads special tokens
//                                               in the text and adds BOS/EOS; `raw` (default) not.
//   tokenizer_tool MODEL decode                 stdin: arrays of ids; stdout: JSON strings, each
//                                               decoded whole and, as a check, as a stream.
//   tokenizer_tool MODEL time FILE REPEATS      tokens and MB/s of Encode on a whole file, best
//   run.
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/formats/checkpoint.h"
#include "engine/model/tokenizer.h"
#include "tests/support/tokenizer_fixtures.h"

namespace metattn {
namespace {

int Fail(const std::string& what) {
  std::cerr << "tokenizer_tool: " << what << "\n";
  return 1;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model) {
  if (std::filesystem::exists(model + "/tokenizer.json")) {
    const auto read = [&](const char* file) {
      std::ifstream in(model + file, std::ios::binary);
      return std::string((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
    };
    return test::TokenizerOf({read("/tokenizer.json"), read("/tokenizer_config.json"), ""});
  }
  const auto checkpoint = Checkpoint::Open(model);
  if (!checkpoint.ok()) return checkpoint.status();
  return Tokenizer::FromCheckpoint(**checkpoint);
}

int EncodeLines(const Tokenizer& tokenizer, bool special) {
  const EncodeOptions options{.add_special = special, .parse_special = special};
  for (std::string line; std::getline(std::cin, line);) {
    const auto ids = tokenizer.Encode(nlohmann::json::parse(line).get<std::string>(), options);
    if (!ids.ok()) return Fail(ids.status().ToString());
    std::cout << nlohmann::json(*ids).dump() << "\n";
  }
  return 0;
}

int DecodeLines(const Tokenizer& tokenizer) {
  for (std::string line; std::getline(std::cin, line);) {
    const auto ids = nlohmann::json::parse(line).get<std::vector<std::int32_t>>();
    const auto text = tokenizer.Decode(ids, true);
    if (!text.ok()) return Fail(text.status().ToString());
    StreamDecoder stream(tokenizer, true);
    std::string streamed;
    for (const std::int32_t id : ids) streamed += stream.Push(id);
    streamed += stream.Flush();
    if (streamed != *text) return Fail("stream and Decode differ on " + line);
    std::cout << nlohmann::json(*text).dump() << "\n";
  }
  return 0;
}

int Time(const Tokenizer& tokenizer, const std::string& path, int repeats) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Fail("cannot read " + path);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  double best_s = 0;
  std::size_t tokens = 0;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto ids = tokenizer.Encode(text, {.add_special = false});
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (!ids.ok()) return Fail(ids.status().ToString());
    tokens = ids->size();
    if (i == 0 || took.count() < best_s) best_s = took.count();
  }
  const double mb_per_s = static_cast<double>(text.size()) / 1e6 / best_s;
  std::cout << nlohmann::json{{"bytes", text.size()}, {"tokens", tokens}, {"mb_per_s", mb_per_s}}
            << "\n";
  return 0;
}

int Main(const std::vector<std::string>& args) {
  if (args.size() < 2) return Fail("usage: tokenizer_tool MODEL encode|decode|time ...");
  const auto tokenizer = Load(args[0]);
  if (!tokenizer.ok()) return Fail(tokenizer.status().ToString());
  if (args[1] == "encode") return EncodeLines(**tokenizer, args.size() > 2 && args[2] == "special");
  if (args[1] == "decode") return DecodeLines(**tokenizer);
  if (args[1] == "time" && args.size() == 4) return Time(**tokenizer, args[2], std::stoi(args[3]));
  return Fail("unknown command " + args[1]);
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) {
  return metattn::Main(std::vector<std::string>(argv + 1, argv + argc));
}
