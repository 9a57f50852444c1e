// What part of a model each rank gets when nobody says: measured, so that unlike devices end a step
// at about the same time.
//
// Decoding reads every weight once a token, so the speed of a rank is that of one row's product.
// Errors: those of the device's memory. Cost: one matrix of at most 256 MiB and some 60 products.
// Example: ranks that measure 1000, 960 and 480 GB/s get weights 1, 1 and .5.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"

namespace metattn {

// Bytes of bf16 weights a second, [rows, cols] times one row; fewer rows when they would be too
// large. The best of some runs.
absl::StatusOr<double> MeasureSpeed(Kernels& kernels, std::int64_t rows, std::int64_t cols);

// Weights of ranks, the fastest 1: eighths of its speed; who reaches .85 of it is its equal,
// because a measurement is no better and equal slices fit a model best.
std::vector<double> WeightsOfSpeeds(std::span<const double> speeds);

}  // namespace metattn
