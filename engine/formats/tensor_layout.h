// Where tensors lie in the data part of a file: sizes without overflow, and offsets that are
// aligned, inside, disjoint and without gaps. Shared by the formats. Pure; thread safe.
// INVALID_ARGUMENT names the file and the tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"

namespace metattn {

// "[576, 1536]"
std::string ShapeText(std::span<const std::int64_t> shape);

// Bytes of a tensor of this type and shape (extents > 0; no extents: one value). The innermost
// extent must be a whole number of blocks.
absl::StatusOr<std::int64_t> ByteSize(DType dtype, std::span<const std::int64_t> shape);

// Sets `data` of each tensor: offsets[i] counts from the start of `data`. Each must be a multiple
// of `alignment`; tensors may not overlap, the first starts at 0, and between two and after the
// last only padding up to the alignment is allowed, since a larger gap means a damaged header. O(n
// log n).
absl::Status PlaceInData(const std::string& file, std::span<const std::byte> data,
                         std::span<const std::uint64_t> offsets, std::uint64_t alignment,
                         std::span<TensorInfo> tensors);

}  // namespace metattn
