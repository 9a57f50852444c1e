// Pages of device memory, which host code cannot touch: they carry a memory protection key that is
// open only while work of a stream runs. A page without access follows each allocation.
//
// Ownership: the caller unmaps what it mapped. Thread safety: mapping and unmapping under the
// runtime's lock; access is per thread. Errors: Map gives null; touching the pages from outside, or
// the last 256 allocations that were unmapped, is a fault (SIGSEGV). Without protection keys in the
// processor and the kernel, host code is not kept out. Cost: some system calls per allocation; some
// 50 ns to open and close.
#pragma once

#include <cstddef>

namespace emu {

constexpr std::size_t kAlign = 256;  // of every allocation, as CUDA's
constexpr int kNanByte = 0xff;       // as bf16, half or float: NaN; as an index: far outside

// `bytes` up to the guard page except for what alignment to 256 needs; filled with NaN bits.
void* MapDevicePages(std::size_t bytes);
void UnmapDevicePages(void* data, std::size_t bytes);

bool HostIsKeptOut();

// While it lives, this thread may (or, with false, may not) touch device pages. Nests.
class DeviceAccess {
 public:
  explicit DeviceAccess(bool allowed = true);
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;

 private:
  int before_ = 0;
};

}  // namespace emu
