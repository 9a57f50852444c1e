#include "engine/rank_speed.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <memory>

#include "engine/formats/status_macros.h"

namespace metattn {
namespace {

constexpr std::int64_t kMostBytes = std::int64_t{256} << 20;
constexpr int kRuns = 3, kProducts = 20;  // the clock of a device is coarser than one product

}  // namespace

absl::StatusOr<double> MeasureSpeed(Kernels& kernels, std::int64_t rows, std::int64_t cols) {
  const std::int64_t row_bytes = cols * 2;
  rows = std::clamp<std::int64_t>(kMostBytes / row_bytes, 1, rows);
  const std::vector<std::byte> zeros(static_cast<std::size_t>(rows * row_bytes));
  const MatrixPart part{DType::kBF16, zeros.data(), rows, row_bytes};
  METATTN_ASSIGN_OR_RETURN(const auto matrix, kernels.Pack({&part, 1}, cols));
  Device& device = kernels.device();
  METATTN_ASSIGN_OR_RETURN(const Buffer x, device.Allocate(static_cast<std::size_t>(cols) * 4));
  METATTN_ASSIGN_OR_RETURN(const Buffer out, device.Allocate(static_cast<std::size_t>(rows) * 4));
  METATTN_ASSIGN_OR_RETURN(const std::unique_ptr<Stream> stream, device.NewStream());
  const std::vector<std::byte> nothing(x.bytes());
  device.CopyIn(nothing.data(), {&x}, x.bytes(), *stream);
  for (int run = 0; run <= kRuns; ++run) {
    (void)stream->Mark();
    for (int i = 0; i < kProducts; ++i) {
      kernels.Linear({matrix.get(), {&x}, {}, {&out}, 1}, *stream);
    }
  }
  (void)stream->Mark();
  METATTN_RETURN_IF_ERROR(stream->Synchronize());
  double seconds = std::numeric_limits<double>::infinity();
  for (int run = 1; run <= kRuns; ++run) {  // the first one warms up
    seconds = std::min(seconds, stream->SecondsBetween(run, run + 1));
  }
  return static_cast<double>(rows * row_bytes) * kProducts / std::max(seconds, 1e-9);
}

std::vector<double> WeightsOfSpeeds(std::span<const double> speeds) {
  const double fastest = *std::max_element(speeds.begin(), speeds.end());
  std::vector<double> weights;
  for (const double speed : speeds) {
    const double part = fastest > 0 ? speed / fastest : 1;
    weights.push_back(part >= 0.85 ? 1 : std::max(1.0, std::round(part * 8)) / 8);
  }
  return weights;
}

}  // namespace metattn
