#include "engine/model/json_reader.h"

#include "absl/strings/str_cat.h"

namespace metattn {

absl::StatusOr<nlohmann::json> ParseJson(std::string_view text, const std::string& file) {
  try {
    return nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": not valid JSON at byte ", error.byte, ": ", error.what()));
  } catch (const nlohmann::json::exception& error) {  // a number out of range, for instance
    return absl::InvalidArgumentError(absl::StrCat(file, ": not valid JSON: ", error.what()));
  }
}

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
