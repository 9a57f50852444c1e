// What a card can do at most, from what the CUDA runtime says about it: the yardstick beside
// measured figures.
//
// Pure but for DescribeCard, which asks the runtime; thread safe. Errors: NOT_FOUND without a GPU.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace metattn::gpu_bench {

struct Card {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  // Highest clocks and the width of the memory's bus; 0 where the runtime does not say.
  double clock_hz = 0, memory_clock_hz = 0;
  int bus_bits = 0;
  bool emulated = false;  // tests/emu: no time means anything
};

absl::StatusOr<Card> DescribeCard(int device);

struct Peaks {  // 0: unknown
  double bytes_per_second = 0;
  double f32_flops = 0;   // without tensor cores, a fused multiply-add counts as two
  double bf16_flops = 0;  // dense, on tensor cores, sums in f32
};

// Clock times width. Worked example (also a test): an A100 (108 multiprocessors of 64 lanes at 1.41
// GHz, 5,120 bits of memory at 1.215 GHz, two transfers a clock) reads 1,555 GB/s and reaches 19.5
// TFLOP/s, 312 on tensor cores.
Peaks PeaksOf(const Card& card);

}  // namespace metattn::gpu_bench
