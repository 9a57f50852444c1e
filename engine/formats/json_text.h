// JSON of a file that is not trusted, parsed strictly: valid UTF-8, no duplicate keys, bounded
// depth. Pure; thread safe. INVALID_ARGUMENT names the file and the place. No exception leaves it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace metattn {

// `name` stands for the file in messages.
absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& name);

}  // namespace metattn
