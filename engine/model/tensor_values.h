// Unquantised tensors as floats, whatever type the file stores. Pure; thread safe. UNIMPLEMENTED
// names a tensor of another type. Cost: one conversion per value.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"

namespace metattn {

// Values [begin, begin + count) in row-major order of an f32, f16 or bf16 tensor.
absl::StatusOr<std::vector<float>> FloatValues(const TensorInfo& tensor, std::int64_t begin,
                                               std::int64_t count);

}  // namespace metattn
