// Prints the architecture and name of the first GPU, "90 NVIDIA H100 ..."; without one, why, and
// exits with 77.
#include <cuda_runtime_api.h>

#include <cstdio>

int main() {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, 0);
  if (error != cudaSuccess) {
    std::printf("%s\n", cudaGetErrorString(error));
    return 77;
  }
  std::printf("%d%d %s\n", properties.major, properties.minor, properties.name);
  return 0;
}
