// UTF-8 checks, repair and the byte alphabet.
#include "engine/model/utf8.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <string_view>

#include "engine/model/byte_alphabet.h"
#include "engine/model/normalizer.h"

namespace metattn {
namespace {

std::string Repaired(std::string_view bytes) {
  std::string out;
  utf8::AppendRepaired(bytes, &out);
  return out;
}

TEST(Utf8, EveryScalarValueIsWellFormedAndComesBack) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    utf8::Append(c, &text);
    std::size_t length = 0;
    ASSERT_EQ(utf8::FirstInvalid(text), std::string_view::npos) << static_cast<unsigned>(c);
    ASSERT_EQ(utf8::Decode(text, 0, &length), c);
    ASSERT_EQ(length, text.size());
    // A prefix is the beginning of a character and nothing else.
    for (std::size_t n = 1; n < text.size(); ++n) {
      ASSERT_EQ(utf8::IncompleteTail("a" + text.substr(0, n)), n);
      ASSERT_EQ(Repaired(text.substr(0, n)), "\uFFFD");
    }
    ASSERT_EQ(utf8::IncompleteTail(text), 0u);
  }
}

TEST(Utf8, SurrogatesOverlongFormsAndValuesPastTheEndAreInvalid) {
  for (const char* bytes :
       {"\xED\xA0\x80", "\xED\xBF\xBF", "\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF",
        "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF", "\x80", "\xE2\x82", "\xC3z"}) {
    EXPECT_EQ(utf8::FirstInvalid(std::string("0123456789") + bytes), 10u);
  }
}

TEST(Utf8, EachMaximalSubpartBecomesOneReplacement) {
  // The Unicode standard's own example (table "U+FFFD for truncated sequences").
  EXPECT_EQ(Repaired("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64"),
            "a\uFFFD\uFFFD\uFFFDb\uFFFDc\uFFFD\uFFFDd");
  EXPECT_EQ(Repaired("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(Repaired(""), "");
}

TEST(Utf8, RepairingPiecesCutAtIncompleteTailsEqualsRepairingTheWhole) {
  constexpr std::string_view kBytes("a\x80\xBF\xC3\xE2\x82\xAC\xF0\x9F\x98\xED\xA0\xFFz", 14);
  std::mt19937 random(1);
  for (int round = 0; round < 20'000; ++round) {
    std::string whole, pending, joined;
    for (int i = 0; i < 12; ++i) {
      const char byte = kBytes[random() % kBytes.size()];
      whole += byte;
      pending += byte;
      const std::size_t certain = pending.size() - utf8::IncompleteTail(pending);
      joined += Repaired(pending.substr(0, certain));
      pending.erase(0, certain);
      ASSERT_LE(pending.size(), 3u);
    }
    ASSERT_EQ(joined + Repaired(pending), Repaired(whole));
    ASSERT_EQ(utf8::FirstInvalid(Repaired(whole)), std::string_view::npos);
  }
}

TEST(ByteAlphabet, EveryByteComesBackAndPrintableOnesStandForThemselves) {
  std::string all;
  for (int byte = 0; byte < 256; ++byte) all += static_cast<char>(byte);
  const std::string text = ToByteAlphabet(all);
  EXPECT_EQ(FromByteAlphabet(text), all);
  EXPECT_EQ(ToByteAlphabet("Az~ \n"), "Az~\u0120\u010A");
  EXPECT_EQ(ToByteAlphabet("\xAD"), "\u0143");  // the last one moved
  EXPECT_EQ(FromByteAlphabet("a b"), std::nullopt);
  EXPECT_EQ(FromByteAlphabet("\u0144"), std::nullopt);
  EXPECT_EQ(FromByteAlphabet("\u00AD"), std::nullopt);
}

TEST(Nfc, ComposesOrdersAndLeavesExclusionsApart) {
  EXPECT_EQ(*ToNfc("e\u0301"), "\u00E9");
  EXPECT_EQ(*ToNfc("A\u030A"), "\u00C5");
  EXPECT_EQ(*ToNfc("\u212B"), "\u00C5");                // a singleton
  EXPECT_EQ(*ToNfc("\u0958"), "\u0915\u093C");          // excluded from composition
  EXPECT_EQ(*ToNfc("q\u0307\u0323"), "q\u0323\u0307");  // marks in canonical order
  EXPECT_EQ(*ToNfc("\u1100\u1161\u11A8"), "\uAC01");    // Hangul
  EXPECT_EQ(*ToNfc("\u01D5"), "\u01D5");                // decomposes twice, composes back
  EXPECT_EQ(*ToNfc(""), "");
  EXPECT_TRUE(IsTriviallyNfc("plain"));
  EXPECT_FALSE(IsTriviallyNfc("e\u0301"));
}

}  // namespace
}  // namespace metattn
