// Bookkeeping of K/V blocks: allocation, sharing of prefixes by hash, eviction. Pure: no device,
// clock or threads.
//
// A block is free, in use (reference count > 0) or cached (count 0, full, findable by its hash,
// evicted least recently used first). The hash of a block chains (parent hash, its tokens, the
// policy in force for each): a block computed under another policy is another block (design section
// 3). Capacity is fixed. Violated contracts are CHECK failures. Every operation is O(1) amortised.
// Worked example: the first test of tests/engine/page_pool_test.cc.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <unordered_map>
#include <vector>

#include "engine/model/block_hash.h"
#include "kernels/types.h"

namespace metattn {

using BlockId = std::int32_t;

// Blocks that hold so many tokens.
constexpr std::int64_t BlocksFor(std::int64_t tokens) {
  return (tokens + kBlockTokens - 1) / kBlockTokens;
}

class PagePool {
 public:
  explicit PagePool(std::int64_t capacity);

  std::int64_t capacity() const { return static_cast<std::int64_t>(blocks_.size()); }
  std::int64_t available() const;  // free + cached: what Allocate can still hand out
  std::int64_t used() const { return capacity() - available(); }

  // A block with reference count 1 and unknown content; evicts the oldest cached block when none is
  // free. Nothing when all are in use.
  std::optional<BlockId> Allocate();
  // Finds a block of this content and takes a reference to it.
  std::optional<BlockId> Acquire(const BlockHash& hash);
  // The block is now full and holds this content. The first block of a hash wins; later ones stay
  // anonymous.
  void Publish(BlockId block, const BlockHash& hash);
  void AddReference(BlockId block);
  // At count 0 a published block becomes cached, an anonymous one free.
  void Release(BlockId block);

 private:
  struct BlockHasher {
    std::size_t operator()(const BlockHash& h) const { return static_cast<std::size_t>(h.lo); }
  };
  struct Block {
    std::int32_t references = 0;
    std::optional<BlockHash> hash;
    std::list<BlockId>::iterator cached;  // valid while references == 0 and hash is set
  };
  std::vector<Block> blocks_;
  std::vector<BlockId> free_;
  std::list<BlockId> cached_;  // front: oldest
  std::unordered_map<BlockHash, BlockId, BlockHasher> by_hash_;
};

}  // namespace metattn
