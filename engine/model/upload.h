// Host values into fresh device memory, once, at load. RESOURCE_EXHAUSTED when memory ends. Waits
// for the copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace metattn {

absl::StatusOr<Buffer> UploadBytes(std::span<const std::byte> bytes, Device& device);
absl::StatusOr<Buffer> UploadFloats(std::span<const float> values, Device& device);

// Many small tensors that every step reads one after the other, side by side in one buffer instead
// of an allocation each.
class UploadTogether {
 public:
  static constexpr std::size_t kAlignment = 64;  // of a tensor, bytes

  // Copies the values. `to` is set by Finish; where there are no values it stays absent.
  void Add(std::span<const std::byte> bytes, View* to);
  // Views point to `buffer`, which must stay where it is.
  absl::Status Finish(Device& device, Buffer* buffer);

 private:
  struct Piece {
    View* to;
    std::size_t offset;
  };
  std::vector<std::byte> bytes_;
  std::vector<Piece> pieces_;
};

}  // namespace metattn
