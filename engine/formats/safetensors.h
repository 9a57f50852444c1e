// safetensors: a JSON directory of tensors and their bytes, of one mapped file.
// Format: https://github.com/huggingface/safetensors. Everything is untrusted: header length, JSON
// (duplicate names included), types, shapes, size products, offsets, overlaps and gaps are checked
// before use. The data may lie unaligned in the file. The bytes must outlive the tensors. Pure;
// thread safe. INVALID_ARGUMENT and UNIMPLEMENTED (a type we do not read) name file and tensor.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"

namespace metattn {

// The tensors in the order of their data, under the names of the file. `name` stands for the file
// in messages.
absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> bytes,
                                                         const std::string& name);

}  // namespace metattn
