// What emulated kernels call: rendezvous of a warp or a block, shared memory, asynchronous copies
// and tensor-core operations. kernel.h puts CUDA's own names over them, kernels/cuda/gpu.h the
// rest.
//
// Ownership: pointers are borrowed for the call. Thread safety: called by CUDA threads of the
// running block only. Errors: a misuse is printed with the file and line of the call ("emu: ...")
// and aborts. Cost: a switch of fibers per waiting thread; the last one to arrive does the work for
// all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <source_location>

namespace emu {

using Site = std::source_location;

// Every thread of the block, at one and the same call. Returns how many gave a true predicate.
int SyncBlock(const char* name, bool predicate, const Site& site);

void SyncWarp(unsigned mask, const Site& site);
// Replaces `value` (2, 4 or 8 bytes) by what lane `source` of the mask gave; a negative source
// keeps the own one.
void Shuffle(unsigned mask, void* value, std::size_t bytes, int source, const Site& site);
// Bit i: lane i is in the mask and gave true.
unsigned Vote(const char* name, unsigned mask, bool predicate, const Site& site);
enum class Reduction { kAdd, kMin, kMax, kAnd, kOr, kXor };
std::int64_t Reduce(Reduction how, unsigned mask, std::int64_t value, const Site& site);

unsigned char* DynamicShared();
void* StaticSharedBytes(const void* key, std::size_t bytes);
template <typename Array, typename Key>
Array& StaticShared(Key) {
  static const char key = 0;  // one for each Key: its address tells the array
  static_assert(alignof(Array) <= 128);
  return *static_cast<Array*>(StaticSharedBytes(&key, sizeof(Array)));
}

void CopyAsync16(void* shared, const void* global, const Site& site);
void CommitCopies();
void WaitForCopies(int pending);

// The whole warp, see kernels/cuda/gpu.h.
void LoadMatrixX4(std::uint32_t* r, const void* row, bool transposed, const Site& site);
void MmaBf16(float* d, const std::uint32_t* a, std::uint32_t b0, std::uint32_t b1,
             const Site& site);

void YieldThread();  // lets the other threads of the block go first
[[noreturn]] void Fail(const char* message, const Site& site);
[[noreturn]] void Fail(const char* message);

}  // namespace emu
