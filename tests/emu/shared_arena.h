// The shared memory of the block that runs: dynamic bytes of exactly the launch's size and the
// static arrays, all filled with NaN bits when a block begins, with fences between and around them.
//
// Ownership: owns the memory, reused by every block; pointers hold until the block ends.
// Thread safety: none (one block at a time). Errors: a fence that was written to, an array beyond
// the room for static ones, are reported and abort; under ASan a touched fence is reported at once.
// Cost: filling and checking about 20 KB per block.
#pragma once

#include <cstddef>
#include <memory>

namespace emu {

class SharedArena {
 public:
  static constexpr std::size_t kStaticBytes = 16 * 1024;  // with the fences

  void BeginBlock(std::size_t dynamic_bytes);
  void CheckFences() const;  // when the block ends
  unsigned char* dynamic() const { return dynamic_; }
  // The static array that `key` stands for: made at the first call in a block, aligned to 16.
  void* Static(const void* key, std::size_t bytes);
  // Whether all bytes lie in one array.
  bool Contains(const void* data, std::size_t bytes) const;

 private:
  struct Slot {
    const void* key;
    unsigned char* data;
    std::size_t bytes;
  };
  static constexpr int kMaxSlots = 64;

  void CheckFence(const unsigned char* begin, const unsigned char* end, const char* after) const;

  std::unique_ptr<unsigned char, void (*)(void*)> memory_{nullptr, nullptr};
  std::size_t capacity_ = 0;
  std::size_t used_ = 0;  // what the block filled
  unsigned char* dynamic_ = nullptr;
  std::size_t dynamic_bytes_ = 0;
  unsigned char* free_ = nullptr;  // next static array
  Slot slots_[kMaxSlots] = {};     // no growing container: its moves would look like races to TSan
  int slot_count_ = 0;
};

}  // namespace emu
