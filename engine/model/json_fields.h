// Looking into parsed JSON that nobody has checked yet: no exceptions, null counts as absent.
//
// Pure functions, thread safe, no errors. Cost: a look-up.
#pragma once

#include <nlohmann/json.hpp>

namespace metattn {

// The member `key` of an object; null when it is absent or null, or `object` is no object. Points
// into `object`.
const nlohmann::json* JsonMember(const nlohmann::json& object, const char* key);

// True when `key` is present and exactly this boolean.
bool JsonIsBool(const nlohmann::json& object, const char* key, bool value);

}  // namespace metattn
