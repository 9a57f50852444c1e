// The asynchronous copies of one CUDA thread: queued when started, performed when waited for, so
// that a missing or too weak wait reads the NaN that stands in their place meanwhile.
//
// Ownership: borrows the addresses. Thread safety: belongs to its CUDA thread. Errors: misaligned
// addresses, a destination outside shared memory and too many copies under way are reported at the
// caller's line. Cost: a copy of 16 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tests/emu/collectives.h"

namespace emu {

class AsyncCopies {
 public:
  void Reset() { first_ = closed_ = end_ = groups_ = oldest_ = 0; }
  void Start(void* shared, const void* global, const Site& site);  // null `global`: zeros
  void Commit();
  void Wait(std::size_t pending);
  bool empty() const { return first_ == end_; }
  // Bytes of global memory that copies of all threads have read; the reader may set it back.
  static std::int64_t& BytesRead();

 private:
  struct Copy {
    void* to;
    const void* from;
  };
  static constexpr std::size_t kMaxCopies = 512;  // rings of fixed size: see SharedArena's slots
  static constexpr std::size_t kMaxGroups = 64;

  Copy copies_[kMaxCopies];
  std::size_t group_ends_[kMaxGroups];
  // Running counts: copies [first_, end_) are under way, those from closed_ on in no group yet;
  // groups [oldest_, groups_) are under way.
  std::size_t first_ = 0, closed_ = 0, end_ = 0;
  std::size_t groups_ = 0, oldest_ = 0;
};

}  // namespace emu
