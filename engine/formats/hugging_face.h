// A Hugging Face model directory: config.json, safetensors (one file or sharded with an index),
// tokenizer files. Reached through Checkpoint::Open; contracts stand in checkpoint.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"

namespace metattn {

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHuggingFace(const std::string& directory);

// "model.layers.3.mlp.up_proj.weight" -> "blk.3.ffn_up.weight"; a name without a canonical one is
// returned as it is.
std::string CanonicalName(std::string_view hugging_face_name);

}  // namespace metattn
