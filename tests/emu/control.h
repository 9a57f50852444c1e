// What tests say to the emulation and ask of it. Code under test knows nothing of this.
//
// Ownership: none. Thread safety: all functions lock. Errors: aborts on unknown values of
// environment variables. Cost: none worth naming.
//
// Environment, read once at the first use: EMU_ORDER (0 fifo, 1 lifo, 2 random) and EMU_SEED for
// threads and blocks; EMU_EAGER_MASK for streams; EMU_DEVICES, EMU_DEVICE_MEMORY_MB, EMU_SM (80,
// 90, 100, 120) for the devices.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace emu {

// In which order runnable CUDA threads of a block, and the blocks of a grid, go on. All are legal
// on a GPU; a missing barrier usually shows in some and not in others.
enum class ThreadOrder { kFifo, kLifo, kRandom };
inline constexpr ThreadOrder kThreadOrders[] = {ThreadOrder::kFifo, ThreadOrder::kLifo,
                                                ThreadOrder::kRandom};
struct ThreadSchedule {
  ThreadOrder order = ThreadOrder::kFifo;
  unsigned seed = 1;  // of kRandom
};
ThreadSchedule ThreadScheduleFromEnvironment();
void SetThreadSchedule(const ThreadSchedule& schedule);

struct Options {
  int devices = 1;
  std::size_t device_memory = std::size_t{1} << 30;  // bytes of each device
  int sm = 90;  // architecture: 80, 90, 100 or 120; 75: a card that no kernel was built for
  // Bit i: the i-th stream created since the Reset runs its work as soon as it may; the others run
  // only when somebody waits for them.
  unsigned eager_mask = 0;

  bool has_kernels() const { return sm >= 80; }
};
Options OptionsFromEnvironment();

// Forgets all streams, events, graphs and memory (handles become invalid), counters and failures.
void Reset(const Options& options = OptionsFromEnvironment());

// One line per kind of thing that was made and not destroyed since the Reset; empty if none.
std::string Leaks();

// Calls of a runtime function since the Reset or ResetCounters, e.g. "cudaGraphLaunch". Variants
// count under the shortest name (cudaStreamCreate, cudaEventCreate, cudaGraphInstantiate); kernels
// that were launched or captured one by one under "cudaLaunchKernel".
std::int64_t Calls(std::string_view function);
// Kernels run and bytes copied, those of graph launches included, counted when the work is done.
std::int64_t KernelsRun();
std::int64_t BytesCopied(cudaMemcpyKind kind);
// Bytes of device memory that kernels read through cp_async16, so far.
std::int64_t BytesReadAsync();
void ResetCounters();

std::size_t DeviceBytesInUse(int device);

// The call number `after` + 1 from now of `function` fails with `error` and does nothing; once.
void FailCall(std::string_view function, cudaError_t error, int after = 0);

}  // namespace emu
