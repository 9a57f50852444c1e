// Tells whether a controller was made for this model: a hash of what quantisation leaves alone.
//
// FNV-1a (64 bits) over the text "layers=L hidden=D heads=H kv_heads=K head_dim=d vocab=V\n" of the
// model's numbers, then, as little-endian f32, the output norm and each layer's attention and MLP
// norm. A GGUF file of any type and a Hugging Face directory of one model agree; it guards against
// mistakes, not against forgery. Pure. Errors name the tensor. Cost: (2 L + 1) D values.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"

namespace metattn {

// "fnv1a64:" and 16 hexadecimal digits.
absl::StatusOr<std::string> Fingerprint(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace metattn
