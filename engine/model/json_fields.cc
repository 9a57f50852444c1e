#include "engine/model/json_fields.h"

namespace metattn {

const nlohmann::json* JsonMember(const nlohmann::json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto member = object.find(key);
  if (member == object.end() || member->is_null()) return nullptr;
  return &*member;
}

bool JsonIsBool(const nlohmann::json& object, const char* key, bool value) {
  const nlohmann::json* member = JsonMember(object, key);
  return member != nullptr && member->is_boolean() && member->get<bool>() == value;
}

}  // namespace metattn
