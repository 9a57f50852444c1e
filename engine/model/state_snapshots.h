// Which linear states are kept aside, and for which prefix: so that a prompt that shares a prefix,
// or a sequence that comes back after a preemption, absorbs only the tokens behind the snapshot
// instead of all of them (design section 3: states can always be rebuilt, snapshots save time).
//
// A snapshot is the state after whole blocks of tokens; the hash of the last of them (block_hash.h)
// names it. Bookkeeping of slot numbers only: the plan tells workers what to copy. Capacity is
// fixed; the least recently used goes first. Pure, one thread. Every operation is O(1), Find
// O(blocks).
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/model/block_hash.h"

namespace metattn {

class StateSnapshots {
 public:
  // Slots first_slot .. first_slot + capacity - 1 are free for snapshots.
  StateSnapshots(std::int32_t first_slot, int capacity);

  struct Found {
    std::int32_t slot = 0;
    std::int64_t blocks = 0;  // that the state holds
  };
  // The longest snapshot of a prefix of these blocks.
  std::optional<Found> Find(std::span<const BlockHash> hashes);
  // The slot that the state after the block with this hash is to be copied to; nothing when there
  // is such a snapshot or no room at all.
  std::optional<std::int32_t> Save(const BlockHash& hash);
  // Makes `slot`, whose owner goes, the snapshot itself and returns the slot to own instead: of an
  // older snapshot, a free one, or `slot` when nothing is kept.
  std::int32_t Exchange(const BlockHash& hash, std::int32_t slot);

  std::size_t size() const { return by_hash_.size(); }

 private:
  struct Entry {
    BlockHash hash;
    std::int32_t slot;
  };
  struct Hasher {
    std::size_t operator()(const BlockHash& h) const { return static_cast<std::size_t>(h.lo); }
  };
  bool Touch(const BlockHash& hash);
  std::int32_t Vacate();

  const std::size_t capacity_;
  std::vector<std::int32_t> free_;
  std::list<Entry> entries_;  // front: oldest
  std::unordered_map<BlockHash, std::list<Entry>::iterator, Hasher> by_hash_;
};

}  // namespace metattn
