#include "engine/model/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>

#include "kernels/types.h"

namespace metattn {
namespace {

std::vector<std::int32_t> Tokens(std::int32_t first) {
  std::vector<std::int32_t> tokens(kBlockTokens);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<RoutePolicy> Policy() { return std::vector<RoutePolicy>(kBlockTokens); }

// The worked example of page_pool.h: two sequences share a prefix, then memory runs out.
TEST(PagePool, SharesAPrefixAndEvictsTheLeastRecentlyUsedBlock) {
  PagePool pool(2);
  const BlockHash seed = SeedHash("model");
  const BlockHash hash = ChainHash(seed, Tokens(0), Policy());

  const BlockId first = *pool.Allocate();  // sequence A computes its first block
  pool.Publish(first, hash);
  EXPECT_EQ(pool.Acquire(hash), first);  // sequence B begins with the same tokens
  EXPECT_EQ(pool.used(), 1);

  pool.Release(first);  // A ends
  EXPECT_EQ(pool.used(), 1);
  pool.Release(first);  // B ends: cached, still findable
  EXPECT_EQ(pool.used(), 0);
  EXPECT_EQ(pool.available(), 2);
  EXPECT_EQ(pool.Acquire(hash), first);
  pool.Release(first);

  const BlockId second = *pool.Allocate();  // the free block goes first ...
  EXPECT_NE(second, first);
  EXPECT_EQ(pool.Allocate(), first);  // ... then the cached one is evicted
  EXPECT_EQ(pool.Acquire(hash), std::nullopt);
  EXPECT_EQ(pool.Allocate(), std::nullopt);
}

TEST(PagePool, EvictsInOrderOfLastUse) {
  PagePool pool(3);
  std::vector<BlockHash> hashes;
  std::vector<BlockId> blocks;
  for (int i = 0; i < 3; ++i) {
    hashes.push_back(ChainHash(SeedHash("m"), Tokens(i), Policy()));
    blocks.push_back(*pool.Allocate());
    pool.Publish(blocks.back(), hashes.back());
  }
  for (const BlockId b : blocks) pool.Release(b);
  pool.Release(*pool.Acquire(hashes[0]));  // used again: now the youngest
  EXPECT_EQ(pool.Allocate(), blocks[1]);
  EXPECT_EQ(pool.Allocate(), blocks[2]);
  EXPECT_EQ(pool.Acquire(hashes[0]), blocks[0]);
}

TEST(PagePool, TheFirstBlockOfAHashWinsAndTheOtherStaysAnonymous) {
  PagePool pool(2);
  const BlockHash hash = ChainHash(SeedHash("m"), Tokens(0), Policy());
  const BlockId a = *pool.Allocate(), b = *pool.Allocate();
  pool.Publish(a, hash);
  pool.Publish(b, hash);
  EXPECT_EQ(pool.Acquire(hash), a);
  pool.Release(a);
  pool.Release(a);
  pool.Release(b);
  EXPECT_EQ(pool.Allocate(), b);  // anonymous, hence free; a is still cached
  EXPECT_EQ(pool.Acquire(hash), a);
}

TEST(PagePool, AnEmptyPoolHandsOutNothing) {
  PagePool pool(0);
  EXPECT_EQ(pool.capacity(), 0);
  EXPECT_EQ(pool.Allocate(), std::nullopt);
}

TEST(PagePoolDeathTest, BrokenContractsAbort) {
  PagePool pool(1);
  EXPECT_DEATH(pool.Release(0), "not in use");
  EXPECT_DEATH(pool.Release(1), "block 1");
  EXPECT_DEATH(pool.Publish(0, BlockHash{}), "not in use");
  EXPECT_DEATH(pool.AddReference(0), "not in use");
  EXPECT_DEATH(ChainHash(BlockHash{}, std::vector<std::int32_t>(3), Policy()), "one full block");
}

std::string Hex(const BlockHash& hash) {  // bytes as the function emits them: little-endian words
  std::string text;
  for (const std::uint64_t word : {hash.lo, hash.hi}) {
    for (int shift = 0; shift < 64; shift += 8) {
      char byte[3];
      std::snprintf(byte, sizeof byte, "%02X", static_cast<unsigned>(word >> shift) & 0xffu);
      text += byte;
    }
  }
  return text;
}

// Made with: openssl mac -macopt hexkey:000102...0f -macopt size:16 SIPHASH
TEST(BlockHashing, SeedHashIsSipHash128WithTheKeyOfThePublishedVectors) {
  std::string bytes;
  for (int i = 0; i < 63; ++i) bytes.push_back(static_cast<char>(i));
  EXPECT_EQ(Hex(SeedHash("")), "A3817F04BA25A8E66DF67214C7550293");
  EXPECT_EQ(Hex(SeedHash(bytes.substr(0, 1))), "DA87C1D86B99AF44347659119B22FC45");
  EXPECT_EQ(Hex(SeedHash(bytes.substr(0, 8))), "3B62A9BA6258F5610F83E264F31497B4");
  EXPECT_EQ(Hex(SeedHash(bytes)), "5150D1772F50834A503E069A973FBD7C");
}

TEST(BlockHashing, EveryInputOfALinkChangesTheHash) {
  std::set<std::string> seen;
  const BlockHash seed = SeedHash("m");
  seen.insert(Hex(ChainHash(seed, Tokens(0), Policy())));
  seen.insert(Hex(ChainHash(SeedHash("n"), Tokens(0), Policy())));
  for (int i = 0; i < kBlockTokens; ++i) {
    auto tokens = Tokens(0);
    tokens[static_cast<std::size_t>(i)] ^= 1 << 20;
    seen.insert(Hex(ChainHash(seed, tokens, Policy())));
    const RoutePolicy others[] = {
        {Route::kLinear},          {Route::kLocal},
        {Route::kRouted},          {Route::kRouted, 0.5f, 0},
        {Route::kRouted, 0, 0.5f}, {Route::kRouted, 0, std::nextafter(0.5f, 1.0f)}};
    for (const RoutePolicy& other : others) {
      auto policy = Policy();
      policy[static_cast<std::size_t>(i)] = other;
      seen.insert(Hex(ChainHash(seed, Tokens(0), policy)));
    }
  }
  EXPECT_EQ(seen.size(), 2u + 7u * kBlockTokens);
}

// Plain model of the contract: who is in use how often, who is cached in which order.
struct Model {
  std::map<BlockId, int> references;
  std::map<BlockId, int> published;  // block -> content
  std::map<int, BlockId> findable;   // content -> block
  std::deque<BlockId> cached;
};

// The pool hands out a free block, else the least recently used cached one, else nothing.
void CheckAllocate(PagePool& pool, Model& model) {
  const bool none_free =
      model.references.size() + model.cached.size() == static_cast<std::size_t>(pool.capacity());
  const auto got = pool.Allocate();
  if (none_free && model.cached.empty()) {
    ASSERT_EQ(got, std::nullopt);
    return;
  }
  ASSERT_TRUE(got);
  ASSERT_FALSE(model.references.contains(*got)) << "a block in use was handed out";
  if (none_free) {
    ASSERT_EQ(*got, model.cached.front()) << "not the least recently used";
    model.cached.pop_front();
    model.findable.erase(model.published.at(*got));
    model.published.erase(*got);
  } else {
    ASSERT_EQ(std::count(model.cached.begin(), model.cached.end(), *got), 0);
  }
  model.references[*got] = 1;
}

class PagePoolProperty : public testing::TestWithParam<int> {};

TEST_P(PagePoolProperty, RandomOperationsAgreeWithAPlainModel) {
  std::mt19937 random(static_cast<unsigned>(GetParam()));
  const int capacity = 1 + static_cast<int>(random() % 12);
  constexpr int kContents = 10;
  std::vector<BlockHash> hashes;
  for (int i = 0; i < kContents; ++i) {
    hashes.push_back(ChainHash(SeedHash("m"), Tokens(i), Policy()));
  }
  PagePool pool(capacity);
  Model model;
  const auto pick = [&] {
    auto at = model.references.begin();
    std::advance(at, static_cast<std::ptrdiff_t>(random() % model.references.size()));
    return at->first;
  };
  for (int i = 0; i < 4000; ++i) {
    const unsigned op = random() % 6;
    if (op <= 1) {
      CheckAllocate(pool, model);
      if (HasFatalFailure()) return;
    } else if (op == 2) {
      const int content = static_cast<int>(random() % kContents);
      const auto got = pool.Acquire(hashes[static_cast<std::size_t>(content)]);
      const auto known = model.findable.find(content);
      ASSERT_EQ(got.has_value(), known != model.findable.end());
      if (!got) continue;
      ASSERT_EQ(*got, known->second);
      std::erase(model.cached, *got);
      ++model.references[*got];
    } else if (!model.references.empty()) {
      const BlockId block = pick();
      if (op == 3 && !model.published.contains(block)) {
        const int content = static_cast<int>(random() % kContents);
        pool.Publish(block, hashes[static_cast<std::size_t>(content)]);
        if (model.findable.emplace(content, block).second) model.published[block] = content;
      } else if (op == 4) {
        pool.AddReference(block);
        ++model.references[block];
      } else if (op == 5) {
        pool.Release(block);
        if (--model.references[block] == 0) {
          model.references.erase(block);
          if (model.published.contains(block)) model.cached.push_back(block);
        }
      }
    }
    ASSERT_EQ(pool.used(), static_cast<std::int64_t>(model.references.size()));
    ASSERT_EQ(pool.available(), capacity - static_cast<std::int64_t>(model.references.size()));
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, PagePoolProperty, testing::Range(0, 20));

}  // namespace
}  // namespace metattn
