#include "tests/emu/async_copies.h"

#include <cstdint>
#include <cstring>

#include "tests/emu/block.h"
#include "tests/emu/fiber.h"

namespace emu {
namespace {

constexpr std::size_t kCopyBytes = 16;

bool Aligned(const void* p) { return reinterpret_cast<std::uintptr_t>(p) % kCopyBytes == 0; }

}  // namespace

std::int64_t& AsyncCopies::BytesRead() {
  static std::int64_t bytes = 0;  // under the runtime's lock, like everything here
  return bytes;
}

void AsyncCopies::Start(void* shared, const void* global, const Site& site) {
  if (!Aligned(shared) || !Aligned(global)) Fail("cp_async16: an address not aligned to 16", site);
  if (!Block::Get().shared().Contains(shared, kCopyBytes)) {
    Fail("cp_async16: the destination is not in this block's shared memory", site);
  }
  if (end_ - first_ == kMaxCopies) Fail("cp_async16: more than 512 copies under way", site);
  NoteWrite(shared, kCopyBytes);  // the copy may land at any time from here on
  std::memset(shared, 0xff, kCopyBytes);
  copies_[end_++ % kMaxCopies] = {shared, global};
}

void AsyncCopies::Commit() {
  if (groups_ - oldest_ == kMaxGroups) Fail("cp_async_commit: more than 64 groups under way");
  closed_ = end_;
  group_ends_[groups_++ % kMaxGroups] = closed_;
}

void AsyncCopies::Wait(std::size_t pending) {
  while (groups_ - oldest_ > pending) {
    const std::size_t end = group_ends_[oldest_++ % kMaxGroups];
    for (; first_ < end; ++first_) {
      const Copy& copy = copies_[first_ % kMaxCopies];
      NoteWrite(copy.to, kCopyBytes);
      if (copy.from == nullptr) {
        std::memset(copy.to, 0, kCopyBytes);
      } else {
        NoteRead(copy.from, kCopyBytes);
        BytesRead() += kCopyBytes;
        std::memcpy(copy.to, copy.from, kCopyBytes);
      }
    }
  }
}

}  // namespace emu
