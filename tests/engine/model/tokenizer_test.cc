// Tokenizers against what Hugging Face tokenizers made of the same files and texts.
#include "engine/model/tokenizer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <string>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/support/tokenizer_fixtures.h"

namespace metattn {
namespace {

using Ids = std::vector<std::int32_t>;
using nlohmann::json;
using test::Fails;

constexpr EncodeOptions kRaw{.add_special = false, .parse_special = false};
constexpr EncodeOptions kSpecial{.add_special = true, .parse_special = true};

Ids MustEncode(const Tokenizer& tokenizer, const std::string& text, EncodeOptions options) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return ids.ok() ? *ids : Ids();
}

std::string Stream(const Tokenizer& tokenizer, const Ids& ids, bool special) {
  StreamDecoder decoder(tokenizer, special);
  std::string text;
  for (const std::int32_t id : ids) text += decoder.Push(id);
  return text + decoder.Flush();
}

class FixtureTest : public ::testing::TestWithParam<const char*> {
 protected:
  const std::string name = GetParam();
  const std::unique_ptr<Tokenizer> tokenizer = test::FixtureTokenizer(name);
  const json expected = test::FixtureJson(name + "/expected.json");
  const std::vector<std::string> texts =
      test::FixtureJson("texts.json").get<std::vector<std::string>>();

  // The entry of a table that lists only what differs from the default.
  template <typename T>
  T Or(const char* table, std::size_t i, T otherwise) const {
    const auto entry = expected[table].find(std::to_string(i));
    return entry == expected[table].end() ? otherwise : entry->get<T>();
  }
};

TEST_P(FixtureTest, EncodesAsHuggingFaceDoes) {
  ASSERT_EQ(expected["raw"].size(), texts.size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Ids raw = expected["raw"][i].get<Ids>();
    EXPECT_EQ(MustEncode(*tokenizer, texts[i], kRaw), raw) << "text " << i << ": " << texts[i];
    EXPECT_EQ(MustEncode(*tokenizer, texts[i], kSpecial), Or("special", i, raw))
        << "text " << i << ": " << texts[i];
  }
}

TEST_P(FixtureTest, DecodesAsHuggingFaceDoesWholeAndAsAStream) {
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const Ids ids = Or("special", i, expected["raw"][i].get<Ids>());
    const auto shown = Or("decoded", i, texts[i]);
    const auto hidden = Or("decoded_without_special", i, shown);
    EXPECT_EQ(*tokenizer->Decode(ids, true), shown) << "text " << i;
    EXPECT_EQ(*tokenizer->Decode(ids, false), hidden) << "text " << i;
    EXPECT_EQ(Stream(*tokenizer, ids, true), shown) << "text " << i;
    EXPECT_EQ(Stream(*tokenizer, ids, false), hidden) << "text " << i;
  }
}

TEST_P(FixtureTest, UserTextNeverBecomesASpecialToken) {
  for (std::size_t id = 0; id < static_cast<std::size_t>(tokenizer->vocab_size()); ++id) {
    const auto token = static_cast<std::int32_t>(id);
    if (!tokenizer->TokenBytes(token, false).empty()) continue;  // only special ones are silent
    const std::string text = tokenizer->TokenBytes(token, true);
    ASSERT_FALSE(text.empty());
    EXPECT_EQ(tokenizer->IdOf(text), token);
    for (const std::int32_t got : MustEncode(*tokenizer, "a " + text + text + "\n", kRaw)) {
      EXPECT_NE(tokenizer->TokenBytes(got, false), "") << "token " << got << " in " << text;
    }
    EXPECT_EQ(MustEncode(*tokenizer, text, {.add_special = false, .parse_special = true}),
              Ids{token});
  }
}

TEST_P(FixtureTest, StreamedPiecesAreWholeCharactersAndJoinToTheDecodedText) {
  std::mt19937 random(5);
  std::uniform_int_distribution<std::int32_t> any(
      0, static_cast<std::int32_t>(tokenizer->vocab_size()) - 1);
  for (int round = 0; round < 200; ++round) {
    Ids ids(1 + round % 40);
    for (auto& id : ids) id = any(random);
    StreamDecoder decoder(*tokenizer, true);
    std::string joined;
    for (const std::int32_t id : ids) {
      const std::string piece = decoder.Push(id);
      // Text that is well formed by itself survives being parsed as JSON.
      ASSERT_NO_THROW(json(piece).dump()) << "after " << joined;
      joined += piece;
    }
    joined += decoder.Flush();
    EXPECT_EQ(joined, *tokenizer->Decode(ids, true));
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, FixtureTest,
                         ::testing::Values("gpt2", "unknown", "smollm", "llama-bpe", "qwen2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::erase(name, '-');
                           return name;
                         });

TEST(Tokenizer, KnowsItsPreTokenizerSpecialTokensAndTemplate) {
  const auto smollm = test::FixtureTokenizer("smollm");
  EXPECT_EQ(smollm->pre_tokenizer(), "smollm");
  EXPECT_EQ(smollm->bos_id(), 1);
  EXPECT_EQ(smollm->stop_ids(), (Ids{2, 0}));  // EOS first, then what also ends a text
  EXPECT_NE(smollm->chat_template().find("SmolLM"), std::string_view::npos);
  const auto llama = test::FixtureTokenizer("llama-bpe");
  EXPECT_EQ(llama->pre_tokenizer(), "llama-bpe");
  EXPECT_EQ(llama->bos_id(), llama->IdOf("<|begin_of_text|>"));
  EXPECT_EQ(llama->stop_ids(), (Ids{llama->IdOf("<|eot_id|>"), llama->IdOf("<|end_of_text|>")}));
  EXPECT_NE(llama->chat_template().find("start_header_id"), std::string_view::npos);
  EXPECT_EQ(test::FixtureTokenizer("gpt2")->pre_tokenizer(), "gpt2");
  EXPECT_EQ(test::FixtureTokenizer("qwen2")->pre_tokenizer(), "qwen2");
  EXPECT_EQ(test::FixtureTokenizer("qwen2")->bos_id(), -1);
  EXPECT_EQ(llama->IdOf("no such token"), -1);
}

TEST(Tokenizer, InvalidUtf8IsAnErrorThatGivesTheOffset) {
  const auto tokenizer = test::FixtureTokenizer("gpt2");
  EXPECT_THAT(tokenizer->Encode("abc\xFFz", kRaw),
              Fails(absl::StatusCode::kInvalidArgument, "not valid UTF-8 at byte 3"));
  EXPECT_THAT(tokenizer->Encode("0123456789 \xE2\x82", kRaw),
              Fails(absl::StatusCode::kInvalidArgument, "not valid UTF-8 at byte 11"));
}

TEST(Tokenizer, AnIdOutsideTheVocabularyIsNothingAloneAndAnErrorInDecode) {
  const auto tokenizer = test::FixtureTokenizer("gpt2");
  const auto past = static_cast<std::int32_t>(tokenizer->vocab_size());
  EXPECT_EQ(tokenizer->TokenBytes(past, true), "");
  EXPECT_EQ(tokenizer->TokenBytes(-1, true), "");
  EXPECT_THAT(tokenizer->Decode(Ids{1, past, -1}, true),
              Fails(absl::StatusCode::kOutOfRange, "token id " + std::to_string(past)));
  EXPECT_THAT(tokenizer->Decode(Ids{1, -1}, true),
              Fails(absl::StatusCode::kOutOfRange, "token id -1 at position 1"));
}

TEST(StreamDecoder, HoldsBackHalfACharacterUntilItIsCertain) {
  const auto tokenizer = test::FixtureTokenizer("smollm");
  const auto byte = [&](char c) {  // the token of one byte, found by what it decodes to
    for (std::int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
      if (tokenizer->TokenBytes(id, true) == std::string(1, c)) return id;
    }
    return -1;
  };
  StreamDecoder decoder(*tokenizer);
  EXPECT_EQ(decoder.Push(byte('\xF0')), "");
  EXPECT_EQ(decoder.Push(byte('\x9F')), "");
  EXPECT_EQ(decoder.Push(byte('\x98')), "");
  EXPECT_EQ(decoder.Push(byte('\x80')), "\U0001F600");
  EXPECT_EQ(decoder.Push(byte('\xE2')), "");
  EXPECT_EQ(decoder.Push(byte('a')), "\uFFFDa");
  EXPECT_EQ(decoder.Push(byte('\xE2')), "");
  EXPECT_EQ(decoder.Flush(), "\uFFFD");
  EXPECT_EQ(decoder.Flush(), "");
}

// Shorter under sanitizers, where everything is ten times slower.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int kLongText = 100'000;
#else
constexpr int kLongText = 1'000'000;
#endif

TEST(Tokenizer, LongWordsAndRunsTakeTimeInProportion) {
  const auto started = std::chrono::steady_clock::now();
  std::string marks = "e";  // unordered combining marks: canonical ordering has to sort them
  for (int i = 0; i < kLongText / 10; ++i) marks += i % 2 == 0 ? "\u0301" : "\u0323";
  for (const char* name : {"gpt2", "smollm", "llama-bpe", "qwen2"}) {
    const auto tokenizer = test::FixtureTokenizer(name);
    for (const std::string& text :
         {std::string(kLongText, 'a'), std::string(kLongText, ' ') + "x",
          std::string(kLongText / 3, '7'), std::string(kLongText / 3, '<'),
          std::string(kLongText / 3, '\n'), marks}) {
      const Ids ids = MustEncode(*tokenizer, text, kRaw);
      EXPECT_FALSE(ids.empty());
    }
  }
  // Generous for a sanitizer build on a busy machine; quadratic work would take hours.
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(120));
}

}  // namespace
}  // namespace metattn
