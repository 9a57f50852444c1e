// Input that begins with '{' is a tokenizer.json: an error, or a tokenizer that then encodes the
// same bytes. Any other input is text for a fixture's tokenizer, which its first byte picks. Never
// a crash, and what comes out is consistent: ids in range, streams equal Decode, and a vocabulary
// with every byte gives the text back.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/tokenizer.h"
#include "engine/model/utf8.h"
#include "tests/support/tokenizer_fixtures.h"

namespace {

using metattn::Tokenizer;

void Require(bool holds) {
  if (!holds) std::abort();
}

// Returns what the ids decode to; empty for text that is refused.
std::string RoundTrip(const Tokenizer& tokenizer, std::string_view text, bool special) {
  const auto ids = tokenizer.Encode(text, {.add_special = special, .parse_special = special});
  const bool valid = metattn::utf8::FirstInvalid(text) == std::string_view::npos;
  Require(ids.ok() == valid);
  if (!ids.ok()) return {};
  const auto decoded = tokenizer.Decode(*ids, true);
  Require(decoded.ok());  // every id is in range
  metattn::StreamDecoder stream(tokenizer, true);
  std::string streamed;
  for (const std::int32_t id : *ids) streamed += stream.Push(id);
  Require(streamed + stream.Flush() == *decoded);
  return *decoded;
}

void FuzzText(std::string_view text, std::uint8_t pick) {
  static const auto* tokenizers = [] {
    auto* all = new std::vector<std::unique_ptr<Tokenizer>>;
    for (const char* name : {"smollm", "llama-bpe", "qwen2", "gpt2"}) {
      all->push_back(metattn::test::FixtureTokenizer(name));
    }
    return all;
  }();
  const std::size_t which = pick % tokenizers->size();
  const Tokenizer& tokenizer = *(*tokenizers)[which];
  const std::string decoded = RoundTrip(tokenizer, text, false);
  // qwen2 normalises, gpt2 lacks bytes; the others lose nothing.
  if (which < 2 && metattn::utf8::FirstInvalid(text) == std::string_view::npos) {
    Require(decoded == text);
  }
  RoundTrip(tokenizer, text, true);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  if (bytes[0] != '{') {
    FuzzText(bytes.substr(1), data[0]);
    return 0;
  }
  const auto tokenizer = metattn::test::TokenizerOf({std::string(bytes), "", ""});
  if (!tokenizer.ok()) {
    Require(!tokenizer.status().message().empty());
    return 0;
  }
  RoundTrip(**tokenizer, bytes, false);
  RoundTrip(**tokenizer, bytes, true);
  return 0;
}
