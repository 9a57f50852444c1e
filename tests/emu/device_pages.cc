#include "tests/emu/device_pages.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(data, bytes) ((void)(data), (void)(bytes))
#endif

namespace emu {
namespace {

constexpr std::size_t kPage = 4096;
constexpr std::size_t kFreedRanges = 256;

constexpr std::size_t RoundUp(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

struct Range {
  void* data;
  std::size_t bytes;
};

// -1: there are none. Closed for the thread that asks first; Linux closes it for all others.
int Key() {
  static const int key = pkey_alloc(0, PKEY_DISABLE_ACCESS);
  return key;
}

}  // namespace

bool HostIsKeptOut() { return Key() >= 0; }

DeviceAccess::DeviceAccess(bool allowed) {
  if (Key() < 0) return;
  before_ = pkey_get(Key());
  pkey_set(Key(), allowed ? 0 : PKEY_DISABLE_ACCESS);
}

DeviceAccess::~DeviceAccess() {
  if (Key() >= 0) pkey_set(Key(), static_cast<unsigned>(before_));
}

void* MapDevicePages(std::size_t bytes) {
  const std::size_t usable = RoundUp(bytes, kPage);
  void* mapped = mmap(nullptr, usable + kPage, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  auto* const begin = static_cast<unsigned char*>(mapped);
  bool ready = mprotect(begin + usable, kPage, PROT_NONE) == 0;
  if (ready && Key() >= 0) {
    ready = pkey_mprotect(begin, usable, PROT_READ | PROT_WRITE, Key()) == 0;
  }
  if (!ready) {
    munmap(mapped, usable + kPage);
    return nullptr;
  }
  const DeviceAccess access;
  std::memset(begin, kNanByte, usable);
  unsigned char* const data = begin + usable - RoundUp(bytes, kAlign);
  ASAN_POISON_MEMORY_REGION(begin, usable);
  ASAN_UNPOISON_MEMORY_REGION(data, bytes);
  return data;
}

void UnmapDevicePages(void* data, std::size_t bytes) {
  const std::size_t usable = RoundUp(bytes, kPage);
  unsigned char* const begin = static_cast<unsigned char*>(data) + RoundUp(bytes, kAlign) - usable;
  ASAN_UNPOISON_MEMORY_REGION(begin, usable);
  // The addresses stay taken for a while, so that late accesses fault instead of finding others'
  // data.
  void* closed = mmap(begin, usable + kPage, PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  static Range freed[kFreedRanges] = {};
  static std::size_t next = 0;
  Range& oldest = freed[next++ % kFreedRanges];
  if (oldest.data != nullptr) munmap(oldest.data, oldest.bytes);
  oldest = {begin, usable + kPage};
  if (closed == MAP_FAILED) oldest = {};
}

}  // namespace emu
