// Host code of launchers: leave for more dynamic shared memory than the 48 KiB that a launch gets
// unasked. Thread safe; the error of cudaFuncSetAttribute; no cost below the limit.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

namespace metattn::cuda {

template <typename... Parameters>
[[nodiscard]] cudaError_t AllowShared(void (*kernel)(Parameters...), std::size_t bytes) {
  if (bytes <= 48 * 1024) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

}  // namespace metattn::cuda
