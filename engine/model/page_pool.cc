#include "engine/model/page_pool.h"

#include <iterator>
#include <string>

#include "kernels/check.h"

namespace metattn {

PagePool::PagePool(std::int64_t capacity) {
  METATTN_CHECK(capacity >= 0, "capacity " + std::to_string(capacity));
  blocks_.resize(static_cast<std::size_t>(capacity));
  free_.reserve(blocks_.size());
  by_hash_.reserve(blocks_.size());
  for (std::int64_t id = capacity - 1; id >= 0; --id) free_.push_back(static_cast<BlockId>(id));
}

std::int64_t PagePool::available() const {
  return static_cast<std::int64_t>(free_.size() + cached_.size());
}

std::optional<BlockId> PagePool::Allocate() {
  BlockId id = 0;
  if (!free_.empty()) {
    id = free_.back();
    free_.pop_back();
  } else if (!cached_.empty()) {
    id = cached_.front();
    cached_.pop_front();
    Block& evicted = blocks_[static_cast<std::size_t>(id)];
    by_hash_.erase(*evicted.hash);
    evicted.hash.reset();
  } else {
    return std::nullopt;
  }
  blocks_[static_cast<std::size_t>(id)].references = 1;
  return id;
}

std::optional<BlockId> PagePool::Acquire(const BlockHash& hash) {
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return std::nullopt;
  Block& block = blocks_[static_cast<std::size_t>(found->second)];
  if (block.references == 0) cached_.erase(block.cached);
  ++block.references;
  return found->second;
}

void PagePool::Publish(BlockId id, const BlockHash& hash) {
  METATTN_CHECK(id >= 0 && id < capacity(), "block " + std::to_string(id));
  Block& block = blocks_[static_cast<std::size_t>(id)];
  METATTN_CHECK(block.references > 0, "published block " + std::to_string(id) + " is not in use");
  METATTN_CHECK(!block.hash, "block " + std::to_string(id) + " was published before");
  if (by_hash_.emplace(hash, id).second) block.hash = hash;
}

void PagePool::AddReference(BlockId id) {
  METATTN_CHECK(id >= 0 && id < capacity(), "block " + std::to_string(id));
  Block& block = blocks_[static_cast<std::size_t>(id)];
  METATTN_CHECK(block.references > 0, "block " + std::to_string(id) + " is not in use");
  ++block.references;
}

void PagePool::Release(BlockId id) {
  METATTN_CHECK(id >= 0 && id < capacity(), "block " + std::to_string(id));
  Block& block = blocks_[static_cast<std::size_t>(id)];
  METATTN_CHECK(block.references > 0, "released block " + std::to_string(id) + " is not in use");
  if (--block.references > 0) return;
  if (block.hash) {
    block.cached = cached_.insert(cached_.end(), id);
  } else {
    free_.push_back(id);
  }
}

}  // namespace metattn
