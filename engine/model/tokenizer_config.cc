// What stands beside tokenizer.json: tokenizer_config.json (BOS, EOS, chat template) and the token
// ids in config.json.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/formats/json_text.h"
#include "engine/model/json_fields.h"
#include "engine/model/tokenizer_spec.h"

namespace metattn {
namespace {

using Json = nlohmann::json;

absl::Status Invalid(const std::string& file, const char* key, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", key, ": ", what));
}

void AddStop(std::int32_t id, TokenizerSpec* spec) {
  auto& stops = spec->stop_ids;
  if (std::find(stops.begin(), stops.end(), id) == stops.end()) stops.push_back(id);
}

// The id of a token written as "text" or as {"content": "text"}; -1 when the key is absent.
absl::StatusOr<std::int32_t> NamedToken(const Json& root, const char* key, const std::string& file,
                                        const TokenizerSpec& spec) {
  const Json* value = JsonMember(root, key);
  if (value == nullptr) return -1;
  const Json* text = value->is_object() ? JsonMember(*value, "content") : value;
  if (text == nullptr || !text->is_string()) return Invalid(file, key, "is not a token");
  const auto id = spec.ids.find(text->get_ref<const std::string&>());
  if (id == spec.ids.end()) return Invalid(file, key, text->dump() + " is not in the vocabulary");
  return id->second;
}

// The template of that name, or the only one there is.
absl::StatusOr<std::string> ChatTemplateText(const Json& root, const std::string& file) {
  const Json* value = JsonMember(root, "chat_template");
  if (value == nullptr) return std::string();
  if (value->is_string()) return value->get<std::string>();
  if (!value->is_array()) return Invalid(file, "chat_template", "is neither text nor a list");
  for (const Json& entry : *value) {
    const Json* name = JsonMember(entry, "name");
    const Json* text = JsonMember(entry, "template");
    if (name != nullptr && *name == "default" && text != nullptr && text->is_string()) {
      return text->get<std::string>();
    }
  }
  return Invalid(file, "chat_template", "has no template of the name \"default\"");
}

}  // namespace

absl::Status AddTokenizerConfig(std::string_view text, const std::string& path,
                                TokenizerSpec* spec) {
  if (text.empty()) return absl::OkStatus();
  const std::string file = path + "/tokenizer_config.json";
  absl::StatusOr<Json> root = ParseJson(text, file);
  if (!root.ok()) return root.status();
  if (!root->is_object()) return absl::InvalidArgumentError(file + ": is not a JSON object");
  const absl::StatusOr<std::int32_t> bos = NamedToken(*root, "bos_token", file, *spec);
  if (!bos.ok()) return bos.status();
  const absl::StatusOr<std::int32_t> eos = NamedToken(*root, "eos_token", file, *spec);
  if (!eos.ok()) return eos.status();
  absl::StatusOr<std::string> chat = ChatTemplateText(*root, file);
  if (!chat.ok()) return chat.status();
  spec->bos_id = *bos;
  if (*eos >= 0) AddStop(*eos, spec);
  spec->chat_template = *std::move(chat);
  return absl::OkStatus();
}

absl::Status AddModelConfig(std::string_view text, const std::string& path, TokenizerSpec* spec) {
  if (text.empty()) return absl::OkStatus();
  const std::string file = path + "/config.json";
  absl::StatusOr<Json> root = ParseJson(text, file);
  if (!root.ok()) return root.status();
  for (const char* key : {"bos_token_id", "eos_token_id"}) {
    const Json* value = JsonMember(*root, key);
    if (value == nullptr) continue;
    const Json list = value->is_array() ? *value : Json::array({*value});
    for (const Json& id : list) {
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= spec->tokens.size()) {
        return Invalid(
            file, key,
            absl::StrCat(id.dump(), " is not one of the ", spec->tokens.size(), " token ids"));
      }
      const auto token = id.get<std::int32_t>();
      if (std::string_view(key) == "eos_token_id") {
        AddStop(token, spec);
      } else if (spec->bos_id < 0) {
        spec->bos_id = token;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace metattn
