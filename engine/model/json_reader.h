// Looking into JSON that nobody has checked yet: no exceptions, null counts as absent.
//
// Pure functions, thread safe. Errors: ParseJson gives INVALID_ARGUMENT with the byte. Cost: a DOM.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace metattn {

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& file);

// The member `key` of an object; null when it is absent or null, or `object` is no object. Points
// into `object`.
const nlohmann::json* JsonMember(const nlohmann::json& object, const char* key);

// True when `key` is present and exactly this boolean.
bool JsonIsBool(const nlohmann::json& object, const char* key, bool value);

}  // namespace metattn
