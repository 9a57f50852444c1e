#include "engine/text_output.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace metattn {
namespace {

// Straightforward truth: the first position at which a stop string ends; of several the longest.
struct Truth {
  std::string text;
  std::string match;
};

Truth Expected(const std::string& text, const std::vector<std::string>& stops) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    std::string best;
    for (const std::string& stop : stops) {
      const bool ends_here =
          stop.size() <= end && text.compare(end - stop.size(), stop.size(), stop) == 0;
      if (ends_here && stop.size() > best.size()) best = stop;
    }
    if (!best.empty()) return {text.substr(0, end - best.size()), best};
  }
  return {text, ""};
}

TEST(StopMatcher, WithoutStopStringsTextPassesThrough) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("any text"), "any text");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, AMatchAcrossPiecesEndsTheTextBeforeIt) {
  StopMatcher matcher({"###"});
  EXPECT_EQ(matcher.Push("ab#"), "ab");
  EXPECT_EQ(matcher.Push("#"), "");
  EXPECT_FALSE(matcher.matched());
  EXPECT_EQ(matcher.Push("# more"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.match(), "###");
  EXPECT_EQ(matcher.Push("even more"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, WhatTurnsOutNotToMatchComesOutAtOnce) {
  StopMatcher matcher({"END OF"});
  EXPECT_EQ(matcher.Push("EN"), "");
  EXPECT_EQ(matcher.Push("DLESS"), "ENDLESS");
}

TEST(StopMatcher, OnlyTheLongestPossibleBeginningIsHeldBack) {
  StopMatcher matcher({"aab"});
  EXPECT_EQ(matcher.Push("aaaa"), "aa");
  EXPECT_EQ(matcher.Push("b"), "");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcher, TheEndGivesOutWhatWasHeldBack) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Push("never sto"), "never ");
  EXPECT_EQ(matcher.Flush(), "sto");
}

TEST(StopMatcher, TheMatchThatEndsFirstCountsWhateverThePieces) {
  for (const std::string piece : {"abc", "a"}) {
    StopMatcher matcher({"abcd", "bc"});
    std::string out;
    const std::string text = "xabcd";
    for (std::size_t i = 0; i < text.size(); i += piece.size()) {
      out += matcher.Push(text.substr(i, piece.size()));
    }
    EXPECT_EQ(out, "xa");
    EXPECT_EQ(matcher.match(), "bc");
  }
}

TEST(StopMatcher, RandomTextCutAnywhereAgreesWithASearchOfTheWhole) {
  std::mt19937 random(7);
  const auto word = [&](std::size_t length) {
    std::string text;
    for (std::size_t i = 0; i < length; ++i) text.push_back(static_cast<char>('a' + random() % 2));
    return text;
  };
  int matches = 0;
  for (int round = 0; round < 6000; ++round) {
    std::vector<std::string> stops;
    for (unsigned i = 0; i < 1 + random() % 3; ++i) stops.push_back(word(3 + random() % 6));
    const std::string text = word(random() % 40);
    const Truth truth = Expected(text, stops);
    StopMatcher matcher(stops);
    std::string out;
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t size = 1 + random() % 4;
      const std::string seen = text.substr(0, std::min(text.size(), at + size));
      out += matcher.Push(text.substr(at, size));
      at += size;
      if (matcher.matched()) break;
      // Held back is exactly the longest end of the text that begins a stop string.
      std::size_t held = 0;
      for (const std::string& stop : stops) {
        for (std::size_t n = 1; n < stop.size() && n <= seen.size(); ++n) {
          if (seen.compare(seen.size() - n, n, stop, 0, n) == 0) held = std::max(held, n);
        }
      }
      ASSERT_EQ(out.size() + held, seen.size());
    }
    out += matcher.Flush();
    ASSERT_EQ(out, truth.text);
    ASSERT_EQ(matcher.match(), truth.match);
    matches += matcher.matched() ? 1 : 0;
  }
  EXPECT_GT(matches, 600);
  EXPECT_LT(matches, 5400);
}

}  // namespace
}  // namespace metattn
