#include "tests/emu/shared_arena.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/emu/block.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

namespace emu {
namespace {

constexpr std::size_t kAlign = 128;
constexpr std::size_t kFence = 1024;
constexpr int kNanByte = 0xff;

constexpr std::size_t RoundUp(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

}  // namespace

void SharedArena::BeginBlock(std::size_t dynamic_bytes) {
  const std::size_t dynamic_end = kFence + RoundUp(dynamic_bytes, kAlign) + kFence;
  used_ = dynamic_end + kStaticBytes;
  if (memory_ != nullptr) ASAN_UNPOISON_MEMORY_REGION(memory_.get(), capacity_);
  if (used_ > capacity_) {
    memory_ = {static_cast<unsigned char*>(std::aligned_alloc(kAlign, used_)), std::free};
    if (memory_ == nullptr) Fail("no memory for a block's shared memory");
    capacity_ = used_;
  }
  std::memset(memory_.get(), kNanByte, used_);
  dynamic_ = memory_.get() + kFence;
  dynamic_bytes_ = dynamic_bytes;
  free_ = memory_.get() + dynamic_end;
  slot_count_ = 0;
  ASAN_POISON_MEMORY_REGION(memory_.get(), capacity_);
  ASAN_UNPOISON_MEMORY_REGION(dynamic_, dynamic_bytes_);
}

void* SharedArena::Static(const void* key, std::size_t bytes) {
  for (int i = 0; i < slot_count_; ++i) {
    if (slots_[i].key == key) return slots_[i].data;
  }
  const std::size_t room = static_cast<std::size_t>(memory_.get() + used_ - free_);
  if (slot_count_ == kMaxSlots || bytes + 2 * kAlign > room) {
    Fail("static shared memory beyond the emulation's 16 KB: use GPU_DYN_SMEM");
  }
  slots_[slot_count_++] = {key, free_, bytes};
  void* data = free_;
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  free_ += RoundUp(bytes, kAlign) + kAlign;
  return data;
}

bool SharedArena::Contains(const void* data, std::size_t bytes) const {
  const auto* begin = static_cast<const unsigned char*>(data);
  const auto inside = [&](const unsigned char* array, std::size_t size) {
    return begin >= array && bytes <= size && begin <= array + (size - bytes);
  };
  if (inside(dynamic_, dynamic_bytes_)) return true;
  for (int i = 0; i < slot_count_; ++i) {
    if (inside(slots_[i].data, slots_[i].bytes)) return true;
  }
  return false;
}

void SharedArena::CheckFence(const unsigned char* begin, const unsigned char* end,
                             const char* after) const {
  const auto bytes = static_cast<std::size_t>(end - begin);
  // All bytes equal the first one: much faster than a loop.
  if (bytes == 0 || (*begin == kNanByte && std::memcmp(begin, begin + 1, bytes - 1) == 0)) return;
  const auto* written = std::find_if(begin, end, [](unsigned char c) { return c != kNanByte; });
  char message[128];
  std::snprintf(message, sizeof message, "shared memory overrun: written %td bytes %s",
                written - begin, after);
  Fail(message);
}

void SharedArena::CheckFences() const {
  ASAN_UNPOISON_MEMORY_REGION(memory_.get(), used_);
  CheckFence(memory_.get(), dynamic_, "into the fence before the dynamic array");
  const unsigned char* fence = dynamic_ + dynamic_bytes_;
  const char* after = "after the end of the dynamic array";
  for (int i = 0; i < slot_count_; ++i) {
    CheckFence(fence, slots_[i].data, after);
    fence = slots_[i].data + slots_[i].bytes;
    after = "after the end of a static array";
  }
  CheckFence(fence, memory_.get() + used_, after);
}

}  // namespace emu
