// How kernels/cuda/launch.h starts a kernel in the emulation.
//
// Ownership: the body (with its copied arguments) is kept until it ran. Thread safety: locks.
// Errors: those of cudaLaunchKernel. Cost: a heap allocation; the kernel runs when its stream does.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <functional>

namespace emu {

struct LaunchShape {
  dim3 grid, block;
  std::size_t shared_bytes = 0;
};

// `body` is called once per CUDA thread.
cudaError_t Launch(const void* kernel, const LaunchShape& shape, cudaStream_t stream,
                   std::function<void()> body);

}  // namespace emu
