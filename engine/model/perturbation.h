// Seeded rounding-size noise on embeddings and all-reduce sums: how far a rounding error of one
// step travels to the logits is measured with it, and bounds between backends, rank counts and
// chunkings are 4 times that (design 3).
//
// A pure function of (seed, place, position, dimension), so every rank and every chunking adds the
// same noise. For tests and bound measurements: it copies through the host and costs accordingly;
// with relative = 0 it does nothing.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/device.h"

namespace metattn {

class Perturbation {
 public:
  Perturbation(double relative, std::uint64_t seed) : relative_(relative), seed_(seed) {}
  bool active() const { return relative_ > 0; }
  // x: [positions.size(), dim] f32 on the device; every value is multiplied by 1 + relative * u, u
  // in [-1, 1).
  [[nodiscard]] absl::Status Apply(View x, const std::vector<std::int32_t>& positions,
                                   std::int64_t dim, std::uint64_t place, Device& device,
                                   Stream& stream) const;

 private:
  double relative_;
  std::uint64_t seed_;
};

}  // namespace metattn
