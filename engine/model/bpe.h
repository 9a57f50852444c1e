// Byte-pair merging of one word over token ids.
//
// Immutable and thread safe after construction; Scratch belongs to one caller. No errors: whoever
// builds the model has checked the ids. Cost: O(n log n) in the bytes of the word.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace metattn {

class BpeModel {
 public:
  struct Merge {
    std::int32_t left = 0, right = 0;  // token ids; the rank is the place in the list
    std::int32_t result = 0;
  };
  struct Args {
    std::array<std::int32_t, 256> byte_ids;  // -1: the vocabulary has no token for this byte
    std::span<const Merge> merges;           // of a pair that stands twice the later one counts
    std::int32_t unknown_id = -1;            // for bytes without a token; -1: they are dropped
    bool fuse_unknown = false;               // a run of such bytes is one unknown token
  };
  struct Symbol {
    std::int32_t id;          // -1: merged into its left neighbour
    std::int32_t prev, next;  // -1: none
  };
  struct Candidate {
    std::uint64_t key;    // rank << 32 | position: best rank first, then leftmost
    std::int32_t result;  // the token the pair had when it was queued
  };
  struct Scratch {
    std::vector<Symbol> symbols;
    std::vector<Candidate> queue;
  };

  explicit BpeModel(const Args& args);

  // Appends the tokens of `word` (under 2^31 bytes) to *ids.
  void Encode(std::string_view word, Scratch* scratch, std::vector<std::int32_t>* ids) const;

 private:
  struct Slot {
    std::uint64_t pair = kEmpty;  // left << 32 | right
    std::int32_t rank = 0;
    std::int32_t result = 0;
  };
  static constexpr std::uint64_t kEmpty = ~std::uint64_t{0};

  std::size_t Probe(std::uint64_t pair) const;  // its slot, or the empty one where it would go
  const Slot* Find(std::int32_t left, std::int32_t right) const;
  void SetSymbols(std::string_view word, std::vector<Symbol>* symbols) const;
  void Enqueue(const std::vector<Symbol>& symbols, std::int32_t left,
               std::vector<Candidate>* queue) const;

  std::array<std::int32_t, 256> byte_ids_;
  std::int32_t unknown_id_;
  bool fuse_unknown_;
  std::vector<Slot> slots_;  // open addressing, a power of two, at most half full
};

}  // namespace metattn
