// BpeModel against the definition: merge the best-ranked pair, the leftmost of equals, until none.
#include "engine/model/bpe.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace metattn {
namespace {

using Ids = std::vector<std::int32_t>;
using Merges = std::vector<BpeModel::Merge>;

BpeModel::Args Letters(const Merges& merges) {  // 'a' is token 0, 'b' 1, ...; other bytes unknown
  BpeModel::Args args{.byte_ids = {}, .merges = merges};
  args.byte_ids.fill(-1);
  for (int letter = 0; letter < 26; ++letter) args.byte_ids['a' + letter] = letter;
  return args;
}

Ids Encode(const BpeModel& model, const std::string& word) {
  BpeModel::Scratch scratch;
  Ids ids;
  model.Encode(word, &scratch, &ids);
  return ids;
}

Ids Definition(const Merges& merges, const std::string& word) {
  std::map<std::pair<int, int>, std::pair<std::size_t, int>> table;
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    table[{merges[rank].left, merges[rank].right}] = {rank, merges[rank].result};
  }
  Ids ids;
  for (const char c : word) ids.push_back(c - 'a');
  while (true) {
    std::size_t best = merges.size(), at = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      const auto found = table.find({ids[i], ids[i + 1]});
      if (found == table.end() || found->second.first >= best) continue;
      best = found->second.first;
      at = i;
    }
    if (best == merges.size()) return ids;
    ids[at] = merges[best].result;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
  }
}

TEST(Bpe, MergesRandomWordsAsTheDefinitionDoes) {
  std::mt19937 random(3);
  for (int round = 0; round < 400; ++round) {
    Merges merges;
    int next = 26;
    for (int i = 0; i < 40; ++i) {  // pairs of letters a to d and of tokens merged before
      const auto pick = [&] {
        const int choice = static_cast<int>(random() % (4 + next - 26));
        return choice < 4 ? choice : 26 + choice - 4;
      };
      merges.push_back({pick(), pick(), next++});
    }
    std::shuffle(merges.begin(), merges.end(), random);
    const BpeModel model(Letters(merges));
    for (int words = 0; words < 20; ++words) {
      std::string word;
      for (std::size_t n = random() % 40; n > 0; --n) word += static_cast<char>('a' + random() % 4);
      ASSERT_EQ(Encode(model, word), Definition(merges, word)) << word;
    }
  }
}

TEST(Bpe, EqualRanksMergeFromTheLeft) {
  const Merges merges = {{0, 0, 26}};
  EXPECT_EQ(Encode(BpeModel(Letters(merges)), "aaaaa"), (Ids{26, 26, 0}));
}

TEST(Bpe, OfAPairThatStandsTwiceTheLaterRankCounts) {
  const Merges merges = {{0, 1, 26}, {1, 2, 27}, {0, 1, 26}};
  EXPECT_EQ(Encode(BpeModel(Letters(merges)), "abc"), (Ids{0, 27}));
}

TEST(Bpe, BytesWithoutATokenAreDroppedReplacedOrFused) {
  const Merges merges = {{0, 1, 26}};
  BpeModel::Args args = Letters(merges);
  EXPECT_EQ(Encode(BpeModel(args), "a!?b"), (Ids{26}));  // what is left becomes neighbours
  args.unknown_id = 30;
  EXPECT_EQ(Encode(BpeModel(args), "a!?b!"), (Ids{0, 30, 30, 1, 30}));
  args.fuse_unknown = true;
  EXPECT_EQ(Encode(BpeModel(args), "!!a!?b"), (Ids{30, 0, 30, 1}));
  EXPECT_EQ(Encode(BpeModel(args), ""), Ids{});
}

TEST(Bpe, AMillionEqualLettersMergeInWellUnderQuadraticTime) {
  Merges merges = {{0, 0, 26}};
  for (int i = 0; i < 12; ++i) merges.push_back({26 + i, 26 + i, 27 + i});
  const BpeModel model(Letters(merges));
  const auto started = std::chrono::steady_clock::now();
  EXPECT_EQ(Encode(model, std::string(1 << 20, 'a')).size(), (1u << 20) >> 13);
  EXPECT_LT(std::chrono::steady_clock::now() - started, std::chrono::seconds(60));
}

}  // namespace
}  // namespace metattn
