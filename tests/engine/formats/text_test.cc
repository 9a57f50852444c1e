// Text and JSON helpers for untrusted files.
#include "engine/formats/text.h"

#include <gtest/gtest.h>

#include <string>

#include "engine/formats/json_text.h"
#include "tests/support/status_matchers.h"

namespace metattn {
namespace {

TEST(Text, Utf8IsWhatUnicodeSaysItIs) {
  for (const char* good : {"", "plain", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf",
                           "\xee\x80\x80", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "a\xc4\xa0z"}) {
    EXPECT_TRUE(IsUtf8(good)) << Quoted(good);
  }
  for (const char* bad : {"\x80", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2z", "\xe0\x9f\xbf",
                          "\xed\xa0\x80", "\xed\xbf\xbf", "\xe2\x82", "\xf0\x8f\xbf\xbf",
                          "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "ok\xfe"}) {
    EXPECT_FALSE(IsUtf8(bad)) << Quoted(bad);
  }
}

TEST(Text, QuotedIsSafeToPrintAndBounded) {
  EXPECT_EQ(Quoted("a.b"), "'a.b'");
  EXPECT_EQ(Quoted("\n\x1b[0m"), "'\\n\\x1b[0m'");
  EXPECT_EQ(Quoted(std::string(1000, 'x')), "'" + std::string(80, 'x') + "...'");
}

TEST(Text, PlainNamesHaveNoBlanks) {
  EXPECT_TRUE(IsPlainName("blk.0.attn_q.weight"));
  for (const char* bad : {"", "a b", "a\n", "\xc4\xa0", "\x7f"}) EXPECT_FALSE(IsPlainName(bad));
}

TEST(JsonText, RejectsDuplicatesAtAnyDepthButNotInSiblings) {
  EXPECT_THAT(ParseJson(R"({"a":{"x":1},"b":{"x":1}})", "f"), test::Succeeds());
  EXPECT_THAT(ParseJson(R"({"a":{"x":1,"x":2}})", "f"),
              test::Fails(absl::StatusCode::kInvalidArgument, "f: has the key 'x' twice"));
  EXPECT_THAT(ParseJson(R"([{"a":[{"b":1,"b":1}]}])", "f"),
              test::Fails(absl::StatusCode::kInvalidArgument, "'b' twice"));
}

TEST(JsonText, SaysWhereTheTextIsWrong) {
  EXPECT_THAT(
      ParseJson("{\n\"a\": tru }", "dir/config.json"),
      test::Fails(absl::StatusCode::kInvalidArgument, "dir/config.json: is not valid JSON"));
  EXPECT_THAT(ParseJson("", "f"),
              test::Fails(absl::StatusCode::kInvalidArgument, "not valid JSON"));
  EXPECT_THAT(ParseJson("{} {}", "f"),
              test::Fails(absl::StatusCode::kInvalidArgument, "not valid JSON"));
}

}  // namespace
}  // namespace metattn
