// launch(kernel, grid, block, shared bytes, stream, arguments...): starts a kernel without <<<>>>,
// so that the source compiles with nvcc and, for the tests' emulation, with any C++ compiler.
//
// Arguments are converted to the kernel's parameter types and copied before the call returns, like
// <<<>>>. Included by the .cu files only; the rest of the program sees plain launcher functions.
// Ownership: none. Thread safety: as cudaLaunchKernel. Errors: the CUDA error of the launch;
// what goes wrong while the kernel runs shows at a later synchronisation. Cost: one launch.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#if !defined(__CUDACC__)
#include <emu/launch.h>

#include <tuple>
#endif

namespace metattn::gpu {

template <typename... Parameters, typename... Arguments>
[[nodiscard]] cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block,
                                 std::size_t shared_bytes, cudaStream_t stream,
                                 Arguments... arguments) {
  static_assert(sizeof...(Parameters) == sizeof...(Arguments), "one argument per parameter");
  const void* function = reinterpret_cast<const void*>(kernel);
#if defined(__CUDACC__)
  const auto start = [&](Parameters... parameters) {
    void* addresses[] = {static_cast<void*>(&parameters)..., nullptr};
    return cudaLaunchKernel(function, grid, block, addresses, shared_bytes, stream);
  };
  return start(static_cast<Parameters>(arguments)...);
#else
  std::tuple<Parameters...> copies(static_cast<Parameters>(arguments)...);
  return ::emu::Launch(function, {grid, block, shared_bytes}, stream,
                       [kernel, copies] { std::apply(kernel, copies); });
#endif
}

}  // namespace metattn::gpu
