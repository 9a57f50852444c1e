#include "engine/model/state_snapshots.h"

namespace metattn {

StateSnapshots::StateSnapshots(std::int32_t first_slot, int capacity)
    : capacity_(static_cast<std::size_t>(capacity)) {
  for (int i = capacity; i-- > 0;) free_.push_back(first_slot + i);
}

std::optional<StateSnapshots::Found> StateSnapshots::Find(std::span<const BlockHash> hashes) {
  for (std::size_t blocks = hashes.size(); blocks > 0; --blocks) {
    if (!Touch(hashes[blocks - 1])) continue;
    return Found{entries_.back().slot, static_cast<std::int64_t>(blocks)};
  }
  return std::nullopt;
}

std::optional<std::int32_t> StateSnapshots::Save(const BlockHash& hash) {
  if (capacity_ == 0 || Touch(hash)) return std::nullopt;
  const std::int32_t slot = Vacate();
  by_hash_[hash] = entries_.insert(entries_.end(), {hash, slot});
  return slot;
}

std::int32_t StateSnapshots::Exchange(const BlockHash& hash, std::int32_t slot) {
  if (capacity_ == 0 || Touch(hash)) return slot;
  const std::int32_t instead = Vacate();
  by_hash_[hash] = entries_.insert(entries_.end(), {hash, slot});
  return instead;
}

// True: there is one, now the youngest.
bool StateSnapshots::Touch(const BlockHash& hash) {
  const auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return false;
  entries_.splice(entries_.end(), entries_, found->second);
  return true;
}

std::int32_t StateSnapshots::Vacate() {
  if (!free_.empty()) {
    const std::int32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  const Entry oldest = entries_.front();
  entries_.pop_front();
  by_hash_.erase(oldest.hash);
  return oldest.slot;
}

}  // namespace metattn
