#include "engine/formats/json_text.h"

#include <unordered_set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/formats/text.h"

namespace metattn {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 64;

}  // namespace

absl::StatusOr<Json> ParseJson(std::string_view text, const std::string& name) {
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  std::string fault;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (!fault.empty()) return false;
    if (depth > kMaxDepth) {
      fault = absl::StrCat("is nested deeper than ", kMaxDepth, " levels");
      return false;
    }
    switch (event) {
      case Json::parse_event_t::object_start:
        keys.emplace_back();
        break;
      case Json::parse_event_t::object_end:
        keys.pop_back();
        break;
      case Json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!keys.back().insert(key).second) {
          fault = absl::StrCat("has the key ", Quoted(key), " twice in one object");
          return false;
        }
        break;
      }
      default:
        break;
    }
    return true;
  };
  try {
    Json json = Json::parse(text.begin(), text.end(), watch);
    if (!fault.empty()) return absl::InvalidArgumentError(absl::StrCat(name, ": ", fault));
    return json;
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": is not valid JSON: ", error.what()));
  }
}

}  // namespace metattn
