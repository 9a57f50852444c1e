// The pre-tokenizers on cases small enough to check by eye. Whole texts are compared with Hugging
// Face's in tokenizer_test.
#include "engine/model/pre_tokenizer.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "tests/support/status_matchers.h"

namespace metattn {
namespace {

using Words = std::vector<std::string>;

Words Split(const char* name, std::string_view text) {
  const auto pre = PreTokenizer::Create(name);
  EXPECT_TRUE(pre.ok()) << pre.status();
  std::vector<std::string_view> words;
  EXPECT_TRUE(pre->Split(text, &words).ok());
  return Words(words.begin(), words.end());
}

TEST(PreTokenizer, Gpt2KeepsASpaceWithItsWordAndNumbersTogether) {
  EXPECT_EQ(Split("gpt2", "It's  1,234 days\n"),
            (Words{"It", "'s", " ", " 1", ",", "234", " days", "\n"}));
  EXPECT_EQ(Split("gpt2", "IT'S   "), (Words{"IT", "'", "S", "   "}));
}

TEST(PreTokenizer, SmollmTakesDigitsOneByOneAndEndsAPieceBeforeThem) {
  EXPECT_EQ(Split("smollm", "a 12  3  b"), (Words{"a", " ", "1", "2", "  ", "3", " ", " b"}));
  EXPECT_EQ(Split("smollm", "x\u0663\u00BDy"), (Words{"x", "\u0663", "\u00BD", "y"}));
}

TEST(PreTokenizer, LlamaBpeTakesThreeDigitsALeadingMarkAndLineEnds) {
  EXPECT_EQ(Split("llama-bpe", "12345 (abc)\r\n\n x"),
            (Words{"123", "45", " (", "abc", ")\r\n\n", " x"}));
  EXPECT_EQ(Split("llama-bpe", "WE'LL  \n  go"), (Words{"WE", "'LL", "  \n", " ", " go"}));
}

TEST(PreTokenizer, Qwen2TakesDigitsOneByOne) {
  EXPECT_EQ(Split("qwen2", "in 2024!\n"), (Words{"in", " ", "2", "0", "2", "4", "!\n"}));
}

TEST(PreTokenizer, WhiteSpaceIsUnicodesAndNothingElse) {
  // U+0085 and U+00A0 are white space; U+180E and U+200B are not.
  EXPECT_EQ(Split("gpt2", "a\u0085\u00A0"), (Words{"a", "\u0085\u00A0"}));
  EXPECT_EQ(Split("gpt2", "a \u180E\u200Bb"), (Words{"a", " \u180E\u200B", "b"}));
}

TEST(PreTokenizer, WordsJoinToTheText) {
  using namespace std::string_view_literals;  // a zero byte belongs to the text
  const std::string_view text = "\0 a\u0301\u20DD 1\u2028\r\n'LL \U0001F600\uFFFD"sv;
  for (const char* name : {"gpt2", "smollm", "llama-bpe", "qwen2"}) {
    std::string joined;
    for (const std::string& word : Split(name, text)) joined += word;
    EXPECT_EQ(joined, text) << name;
    EXPECT_EQ(Split(name, ""), Words{}) << name;
  }
}

TEST(PreTokenizer, OtherSpellingsMeanTheSameAndUnknownNamesListTheKnown) {
  EXPECT_EQ(PreTokenizer::Create("gpt-2")->name(), "gpt2");
  EXPECT_EQ(PreTokenizer::Create("llama3")->name(), "llama-bpe");
  EXPECT_THAT(PreTokenizer::Create("tekken"),
              test::Fails(absl::StatusCode::kUnimplemented,
                          "\"tekken\" is not supported (known: gpt2, smollm, llama-bpe, qwen2)"));
  EXPECT_EQ(PreTokenizer::NameOfSplit("\\w+"), "");
}

}  // namespace
}  // namespace metattn
