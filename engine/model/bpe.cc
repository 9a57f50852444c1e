#include "engine/model/bpe.h"

#include <algorithm>
#include <bit>
#include <cstddef>

namespace metattn {
namespace {

std::uint64_t PairKey(std::int32_t left, std::int32_t right) {
  return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
         static_cast<std::uint32_t>(right);
}

bool Later(const BpeModel::Candidate& a, const BpeModel::Candidate& b) { return a.key > b.key; }

}  // namespace

BpeModel::BpeModel(const Args& args)
    : byte_ids_(args.byte_ids), unknown_id_(args.unknown_id), fuse_unknown_(args.fuse_unknown) {
  slots_.resize(std::bit_ceil(std::max<std::size_t>(16, args.merges.size() * 2)));
  for (std::size_t rank = 0; rank < args.merges.size(); ++rank) {
    const Merge& merge = args.merges[rank];
    const std::uint64_t pair = PairKey(merge.left, merge.right);
    slots_[Probe(pair)] = {pair, static_cast<std::int32_t>(rank), merge.result};
  }
}

std::size_t BpeModel::Probe(std::uint64_t pair) const {
  const std::size_t mask = slots_.size() - 1;
  std::uint64_t hash = pair * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 32;
  std::size_t i = hash & mask;
  while (slots_[i].pair != kEmpty && slots_[i].pair != pair) i = (i + 1) & mask;
  return i;
}

const BpeModel::Slot* BpeModel::Find(std::int32_t left, std::int32_t right) const {
  const Slot& slot = slots_[Probe(PairKey(left, right))];
  return slot.pair == kEmpty ? nullptr : &slot;
}

void BpeModel::SetSymbols(std::string_view word, std::vector<Symbol>* symbols) const {
  symbols->clear();
  bool in_unknown = false;
  for (const char byte : word) {
    std::int32_t id = byte_ids_[static_cast<std::uint8_t>(byte)];
    const bool unknown = id < 0;
    const bool fused = unknown && in_unknown && fuse_unknown_;
    in_unknown = unknown;
    if (unknown) id = unknown_id_;
    if (id < 0 || fused) continue;
    const auto at = static_cast<std::int32_t>(symbols->size());
    symbols->push_back({id, at - 1, at + 1});
  }
  if (!symbols->empty()) symbols->back().next = -1;
}

void BpeModel::Enqueue(const std::vector<Symbol>& symbols, std::int32_t left,
                       std::vector<Candidate>* queue) const {
  const Symbol& symbol = symbols[left];
  if (symbol.next < 0) return;
  const Slot* slot = Find(symbol.id, symbols[symbol.next].id);
  if (slot == nullptr) return;
  queue->push_back({PairKey(slot->rank, left), slot->result});
  std::push_heap(queue->begin(), queue->end(), Later);
}

void BpeModel::Encode(std::string_view word, Scratch* scratch,
                      std::vector<std::int32_t>* ids) const {
  std::vector<Symbol>& symbols = scratch->symbols;
  std::vector<Candidate>& queue = scratch->queue;
  SetSymbols(word, &symbols);
  queue.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
    Enqueue(symbols, static_cast<std::int32_t>(i), &queue);
  }
  while (!queue.empty()) {
    const Candidate best = queue.front();
    std::pop_heap(queue.begin(), queue.end(), Later);
    queue.pop_back();
    const auto left = static_cast<std::int32_t>(best.key & 0xFFFFFFFFu);
    Symbol& symbol = symbols[left];
    if (symbol.id < 0 || symbol.next < 0) continue;
    // A neighbour may have changed since. What counts is that the pair still gives this token (not
    // that it still has this rank): that is how Hugging Face's BPE decides.
    const Slot* slot = Find(symbol.id, symbols[symbol.next].id);
    if (slot == nullptr || slot->result != best.result) continue;
    Symbol& right = symbols[symbol.next];
    symbol.id = best.result;
    symbol.next = right.next;
    right.id = -1;
    if (symbol.next >= 0) symbols[symbol.next].prev = left;
    if (symbol.prev >= 0) Enqueue(symbols, symbol.prev, &queue);
    Enqueue(symbols, left, &queue);
  }
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids->push_back(symbol.id);
  }
}

}  // namespace metattn
