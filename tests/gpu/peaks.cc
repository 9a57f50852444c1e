#include "tests/gpu/peaks.h"

#include <cuda_runtime_api.h>

#include <cstring>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace metattn::gpu_bench {
namespace {

// Of one multiprocessor, from the tables of arithmetic throughput in the CUDA programming guide and
// the architecture papers (A100, H100, Blackwell).
struct Width {
  int major, minor;
  int f32_lanes;           // one fused multiply-add a clock each
  int bf16_flops_a_clock;  // dense, on tensor cores; 0: differs between cards of the capability
};
constexpr Width kWidths[] = {{8, 0, 64, 2048},   {8, 6, 128, 0},    {8, 7, 128, 0},
                             {8, 9, 128, 0},     {9, 0, 128, 4096}, {10, 0, 128, 8192},
                             {10, 3, 128, 8192}, {12, 0, 128, 0},   {12, 1, 128, 0}};

int Attribute(cudaDeviceAttr attribute, int device) {
  int value = 0;
  if (cudaDeviceGetAttribute(&value, attribute, device) == cudaSuccess) return value;
  (void)cudaGetLastError();  // the runtime does not know it: that is an answer, not a failure
  return 0;
}

}  // namespace

absl::StatusOr<Card> DescribeCard(int device) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error != cudaSuccess) {
    return absl::NotFoundError(absl::StrCat("no CUDA device: ", cudaGetErrorString(error)));
  }
  Card card;
  card.name = properties.name;
  card.major = properties.major;
  card.minor = properties.minor;
  card.multiprocessors = properties.multiProcessorCount;
  card.clock_hz = 1e3 * Attribute(cudaDevAttrClockRate, device);
  card.memory_clock_hz = 1e3 * Attribute(cudaDevAttrMemoryClockRate, device);
  card.bus_bits = Attribute(cudaDevAttrGlobalMemoryBusWidth, device);
  card.emulated = std::strncmp(properties.name, "CPU emulation", 13) == 0;
  return card;
}

Peaks PeaksOf(const Card& card) {
  Peaks peaks;
  peaks.bytes_per_second = 2 * card.memory_clock_hz * card.bus_bits / 8;
  for (const Width& width : kWidths) {
    if (width.major != card.major || width.minor != card.minor) continue;
    peaks.f32_flops = 2.0 * width.f32_lanes * card.multiprocessors * card.clock_hz;
    peaks.bf16_flops = width.bf16_flops_a_clock * (card.multiprocessors * card.clock_hz);
  }
  return peaks;
}

}  // namespace metattn::gpu_bench
