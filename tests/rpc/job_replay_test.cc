#include "rpc/job_replay.h"

#include <gtest/gtest.h>

#include <random>

namespace metattn {
namespace {

using Outcome = JobReplay::Outcome;

OutputChunk Chunk(std::vector<std::int32_t> tokens, std::string text) {
  return {-1, 0, std::move(tokens), std::move(text)};
}

TEST(JobReplay, WithoutStoredOutputThereIsNothingToCompare) {
  EXPECT_FALSE(JobReplay(std::vector<OutputChunk>{}).active());
}

TEST(JobReplay, TheExampleOfTheHeader) {
  JobReplay replay({Chunk({1, 2, 3}, "abc")});
  EXPECT_TRUE(replay.active());
  EXPECT_EQ(replay.Add(Chunk({1}, "a"), false), Outcome::kRepeats);
  EXPECT_EQ(replay.Add(Chunk({2, 3, 4}, "bcd"), false), Outcome::kPassed);
  EXPECT_EQ(replay.rest().tokens, std::vector<std::int32_t>{4});
  EXPECT_EQ(replay.rest().text, "d");
  EXPECT_EQ(replay.rest().offset, 3);
  EXPECT_FALSE(replay.active());
}

TEST(JobReplay, TextThatLagsBehindTokensIsWaitedFor) {
  JobReplay replay({Chunk({1, 2}, "ab")});
  EXPECT_EQ(replay.Add(Chunk({1, 2, 3}, "a"), false), Outcome::kRepeats);
  EXPECT_EQ(replay.Add(Chunk({4}, "bcd"), false), Outcome::kPassed);
  EXPECT_EQ(replay.rest().tokens, (std::vector<std::int32_t>{3, 4}));
  EXPECT_EQ(replay.rest().text, "cd");
}

TEST(JobReplay, AnotherTokenIsADifferenceAndTheWholeRunIsKept) {
  JobReplay replay({Chunk({1, 2, 3}, "abc")});
  EXPECT_EQ(replay.Add(Chunk({1}, "a"), false), Outcome::kRepeats);
  EXPECT_EQ(replay.Add(Chunk({9}, "x"), false), Outcome::kDiffers);
  ASSERT_EQ(replay.run().size(), 2u);
  EXPECT_EQ(replay.run()[1].tokens, std::vector<std::int32_t>{9});
}

TEST(JobReplay, AnEarlierEndIsADifference) {
  JobReplay replay({Chunk({1, 2, 3}, "abc")});
  EXPECT_EQ(replay.Add(Chunk({1}, "a"), true), Outcome::kDiffers);
}

TEST(JobReplay, AnEqualRunInAnyCutsGivesExactlyWhatIsMissing) {
  std::mt19937 random(7);
  for (int round = 0; round < 200; ++round) {
    const int stored = 1 + random() % 20, total = stored + random() % 10;
    OutputChunk before;
    for (int i = 0; i < stored; ++i) {
      before.tokens.push_back(i);
      before.text += static_cast<char>('a' + i);
    }
    JobReplay replay({before});
    std::vector<std::int32_t> tokens = before.tokens;
    std::string text = before.text;
    for (int at = 0; at < total;) {
      OutputChunk chunk;
      chunk.offset = at;
      for (int n = 1 + random() % 4; n > 0 && at < total; --n, ++at) {
        chunk.tokens.push_back(at);
        chunk.text += static_cast<char>('a' + at);
      }
      const OutputChunk* add = &chunk;
      if (replay.active()) {
        const Outcome outcome = replay.Add(chunk, at == total);
        ASSERT_NE(outcome, Outcome::kDiffers);
        if (outcome == Outcome::kRepeats) continue;
        add = &replay.rest();
      }
      ASSERT_EQ(add->offset, static_cast<std::int64_t>(tokens.size()));
      tokens.insert(tokens.end(), add->tokens.begin(), add->tokens.end());
      text += add->text;
    }
    ASSERT_EQ(tokens.size(), static_cast<std::size_t>(total));
    for (int i = 0; i < total; ++i) ASSERT_EQ(tokens[i], i);
    ASSERT_EQ(text.size(), static_cast<std::size_t>(total));
  }
}

}  // namespace
}  // namespace metattn
