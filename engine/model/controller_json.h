// controller.json to a ControllerSpec; the schema is in controller_file.h. Pure. Errors name the
// file and the key.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/controller_file.h"

namespace metattn {

// `fingerprint` is that of the model at hand. `file` stands for the file in messages.
absl::StatusOr<ControllerSpec> ParseControllerJson(std::string_view text, const std::string& file,
                                                   const ModelConfig& config,
                                                   const std::string& fingerprint);

}  // namespace metattn
