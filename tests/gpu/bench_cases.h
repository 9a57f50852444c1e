// What the kernel benchmark runs: one op at a shape, on any backend, with the bytes it must move
// and the operations it must do at least.
//
// Inputs are functions of the shape alone, so two backends get the same. Ownership: cases keep what
// they use and borrow the Rig. Not thread safe. Errors: device trouble aborts (Rig). Cost: memory
// for every case's inputs until the Rig goes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/kernels/support.h"

namespace metattn::gpu_bench {

struct Shape {
  std::int64_t hidden = 0;  // columns of the matrices
  std::int64_t rows = 0;    // of the matrices
  int heads = 0, group = 0, head_dim = 0;
  int sequences = 0;  // of a decode step
  int context = 0;    // tokens of each
  int chunk = 0;      // rows of a prefill step
};

// For comparison with ref, and for the emulation: remainders, a few rows.
inline constexpr Shape kSmall = {160, 70, 2, 4, 128, 3, 700, 40};
// For timing: a layer of an 8 B model; no matrix and no K/V fits into a second-level cache.
inline constexpr Shape kTimed = {4096, 57344, 8, 4, 128, 16, 8192, 512};

struct Case {
  std::string name;
  // Lower bounds: every input read once, every output written once; multiply-adds count as two.
  double bytes = 0, flops = 0;
  std::function<void()> run;                   // enqueues the op
  std::function<std::vector<float>()> result;  // of all runs so far
};

// Makers of one or more cases; each is called on its own, so that memory goes in between.
using Maker = std::function<std::vector<Case>(testing::Rig&, const Shape&)>;
std::vector<Maker> Makers();

}  // namespace metattn::gpu_bench
