// Host values into fresh device memory, once, at load. RESOURCE_EXHAUSTED when memory ends. Waits
// for the copy.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "kernels/device.h"

namespace metattn {

absl::StatusOr<Buffer> UploadBytes(std::span<const std::byte> bytes, Device& device);
absl::StatusOr<Buffer> UploadFloats(std::span<const float> values, Device& device);

}  // namespace metattn
