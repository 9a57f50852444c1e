// tokenizer.json as Hugging Face tokenizers writes it, for byte-level BPE. Its pieces are
// recognised by their structure; one that is not known is UNIMPLEMENTED and named, never guessed
// at. Truncation and padding settings are ignored: they are the caller's business here.
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/formats/json_text.h"
#include "engine/model/json_fields.h"
#include "engine/model/pre_tokenizer.h"
#include "engine/model/tokenizer_spec.h"

namespace metattn {
namespace {

using Json = nlohmann::json;

absl::Status Invalid(const std::string& where, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", what));
}
absl::Status Unsupported(const std::string& where, const std::string& what) {
  return absl::UnimplementedError(absl::StrCat(where, ": ", what, " is not supported"));
}

std::string TypeOf(const Json& object) {
  const Json* type = JsonMember(object, "type");
  return type != nullptr && type->is_string() ? type->get<std::string>() : "without a type";
}

// "Sequence[Digits, ByteLevel]": what an unknown component is called in messages.
std::string Describe(const Json& component) {
  std::string text = TypeOf(component);
  for (const char* list : {"pretokenizers", "normalizers", "processors", "decoders"}) {
    const Json* parts = JsonMember(component, list);
    if (parts == nullptr || !parts->is_array()) continue;
    std::string inside;
    for (const Json& part : *parts) {
      absl::StrAppend(&inside, inside.empty() ? "" : ", ", TypeOf(part));
    }
    absl::StrAppend(&text, "[", inside, "]");
  }
  return text;
}

// The members of a Sequence, or the component itself.
std::vector<const Json*> Flatten(const Json& component, const char* list) {
  const Json* parts = TypeOf(component) == "Sequence" ? JsonMember(component, list) : nullptr;
  if (parts == nullptr || !parts->is_array()) return {&component};
  std::vector<const Json*> flat;
  for (const Json& part : *parts) flat.push_back(&part);
  return flat;
}

bool IsByteLevel(const Json& component, bool use_regex) {
  return TypeOf(component) == "ByteLevel" && JsonIsBool(component, "add_prefix_space", false) &&
         (JsonIsBool(component, "use_regex", use_regex) ||
          (use_regex && JsonMember(component, "use_regex") == nullptr));
}

// The regular expression of a Split that keeps what it finds as words of their own.
std::optional<std::string> IsolatingSplit(const Json& component) {
  if (TypeOf(component) != "Split" || !JsonIsBool(component, "invert", false)) return std::nullopt;
  const Json* behavior = JsonMember(component, "behavior");
  const Json* pattern = JsonMember(component, "pattern");
  if (behavior == nullptr || *behavior != "Isolated" || pattern == nullptr) return std::nullopt;
  const Json* regex = JsonMember(*pattern, "Regex");
  if (regex == nullptr || !regex->is_string()) return std::nullopt;
  return regex->get<std::string>();
}

class TokenizerJsonReader {
 public:
  TokenizerJsonReader(const Json& root, std::string file) : root_(root), file_(std::move(file)) {}

  absl::StatusOr<TokenizerSpec> Read() {
    if (!root_.is_object()) return Invalid(file_, "is not a JSON object");
    for (auto step : {&TokenizerJsonReader::ReadModel, &TokenizerJsonReader::ReadVocab,
                      &TokenizerJsonReader::ReadMerges, &TokenizerJsonReader::ReadAdded,
                      &TokenizerJsonReader::ReadUnknown, &TokenizerJsonReader::ReadNormalizer,
                      &TokenizerJsonReader::ReadPreTokenizer, &TokenizerJsonReader::ReadDecoder,
                      &TokenizerJsonReader::ReadPostProcessor}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    return std::move(spec_);
  }

 private:
  std::string At(const std::string& key) const { return absl::StrCat(file_, ": ", key); }

  absl::Status ReadModel() {
    const Json* model = JsonMember(root_, "model");
    if (model == nullptr || !model->is_object()) return Invalid(At("model"), "is not an object");
    model_ = model;
    // Files from before the field existed leave it out.
    if (JsonMember(*model, "type") != nullptr && TypeOf(*model) != "BPE") {
      return Unsupported(At("model.type"), "\"" + TypeOf(*model) + "\" (known: BPE)");
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      const Json* value = JsonMember(*model, key);
      if (value != nullptr && *value != "") {
        return Unsupported(At(absl::StrCat("model.", key)), value->dump());
      }
    }
    const Json* dropout = JsonMember(*model, "dropout");
    if (dropout != nullptr && *dropout != 0) return Unsupported(At("model.dropout"), "dropout");
    for (const auto& [key, target] :
         {std::pair<const char*, bool*>{"byte_fallback", &byte_fallback_},
          {"fuse_unk", &spec_.fuse_unknown},
          {"ignore_merges", &spec_.ignore_merges}}) {
      const Json* value = JsonMember(*model, key);
      if (value == nullptr) continue;
      if (!value->is_boolean()) return Invalid(At(absl::StrCat("model.", key)), "is not a boolean");
      *target = value->get<bool>();
    }
    if (byte_fallback_) return Unsupported(At("model.byte_fallback"), "true");
    return absl::OkStatus();
  }

  // Every id from 0 to one below the number of different tokens, each once: then vectors by id need
  // no holes, and an id from a file cannot make us allocate.
  absl::Status SetToken(const std::string& text, const Json& id, const std::string& where) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= spec_.tokens.size()) {
      return Invalid(where, absl::StrCat("id ", id.dump(), " is not in [0, ", spec_.tokens.size(),
                                         "), the number of tokens"));
    }
    const auto index = id.get<std::size_t>();
    if (taken_[index]) return Invalid(where, absl::StrCat("id ", index, " is used twice"));
    taken_[index] = true;
    spec_.tokens[index] = text;
    spec_.ids.emplace(text, static_cast<std::int32_t>(index));
    return absl::OkStatus();
  }

  absl::Status ReadVocab() {
    const Json* vocab = JsonMember(*model_, "vocab");
    if (vocab == nullptr || !vocab->is_object()) {
      return Invalid(At("model.vocab"), "is not an object");
    }
    std::size_t count = vocab->size();
    const Json* added = JsonMember(root_, "added_tokens");
    if (added != nullptr && added->is_array()) {
      for (const Json& token : *added) {
        const Json* content = JsonMember(token, "content");
        if (content != nullptr && content->is_string() &&
            !vocab->contains(content->get_ref<const std::string&>())) {
          ++count;
        }
      }
    }
    if (count > std::numeric_limits<std::int32_t>::max()) {
      return Invalid(At("model.vocab"), "too many tokens");
    }
    spec_.tokens.resize(count);
    taken_.resize(count);
    spec_.ids.reserve(count);
    for (const auto& [text, id] : vocab->items()) {
      absl::Status status = SetToken(text, id, At("model.vocab[\"" + text + "\"]"));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ReadMerges() {
    const Json* merges = JsonMember(*model_, "merges");
    if (merges == nullptr || !merges->is_array()) {
      return Invalid(At("model.merges"), "is not an array");
    }
    if (merges->size() > std::numeric_limits<std::int32_t>::max()) {
      return Invalid(At("model.merges"), "too many merges");
    }
    spec_.merges.reserve(merges->size());
    for (std::size_t rank = 0; rank < merges->size(); ++rank) {
      const Json& entry = (*merges)[rank];
      const std::string where = absl::StrCat(At("model.merges["), rank, "]");
      absl::StatusOr<BpeModel::Merge> merge;
      if (entry.is_string()) {
        merge = ResolveMergeLine(spec_, entry.get_ref<const std::string&>(), where);
      } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() &&
                 entry[1].is_string()) {
        merge = ResolveMerge(spec_, entry[0].get_ref<const std::string&>(),
                             entry[1].get_ref<const std::string&>(), where);
      } else {
        return Invalid(where, "is neither \"left right\" nor [left, right]");
      }
      if (!merge.ok()) return merge.status();
      spec_.merges.push_back(*merge);
    }
    return absl::OkStatus();
  }

  absl::Status ReadAdded() {
    const Json* added = JsonMember(root_, "added_tokens");
    if (added != nullptr && !added->is_array()) {
      return Invalid(At("added_tokens"), "is not an array");
    }
    for (std::size_t i = 0; added != nullptr && i < added->size(); ++i) {
      absl::Status status = ReadAddedToken((*added)[i], absl::StrCat(At("added_tokens["), i, "]"));
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ReadAddedToken(const Json& entry, const std::string& where) {
    const Json* content = JsonMember(entry, "content");
    const Json* id = JsonMember(entry, "id");
    if (content == nullptr || !content->is_string()) {
      return Invalid(where + ".content", "is not a string");
    }
    if (id == nullptr) return Invalid(where + ".id", "is missing");
    AddedToken token;
    token.content = content->get<std::string>();
    bool single_word = false;
    for (const auto& [key, target] : {std::pair<const char*, bool*>{"special", &token.special},
                                      {"normalized", &token.normalized},
                                      {"lstrip", &token.lstrip},
                                      {"rstrip", &token.rstrip},
                                      {"single_word", &single_word}}) {
      const Json* value = JsonMember(entry, key);
      if (value == nullptr || !value->is_boolean()) {
        return Invalid(absl::StrCat(where, ".", key), "is not a boolean");
      }
      *target = value->get<bool>();
    }
    if (single_word) return Unsupported(where + ".single_word", "true");
    if (absl::Status status = CheckAddedToken(token, where); !status.ok()) return status;
    const auto known = spec_.ids.find(token.content);
    if (known == spec_.ids.end()) {
      absl::Status status = SetToken(token.content, *id, where);
      if (!status.ok()) return status;
    } else if (*id != known->second) {
      return Invalid(where, absl::StrCat("id ", id->dump(), " but the vocabulary says ",
                                         known->second, " for \"", token.content, "\""));
    }
    token.id = spec_.ids.at(token.content);
    spec_.added.push_back(std::move(token));
    return absl::OkStatus();
  }

  absl::Status ReadUnknown() {
    const Json* unknown = JsonMember(*model_, "unk_token");
    if (unknown == nullptr) return absl::OkStatus();
    if (!unknown->is_string()) return Invalid(At("model.unk_token"), "is not a string");
    const auto id = spec_.ids.find(unknown->get_ref<const std::string&>());
    if (id == spec_.ids.end()) {
      return Invalid(At("model.unk_token"), unknown->dump() + " is not in the vocabulary");
    }
    spec_.unknown_id = id->second;
    return absl::OkStatus();
  }

  absl::Status ReadNormalizer() {
    const Json* normalizer = JsonMember(root_, "normalizer");
    if (normalizer == nullptr) return absl::OkStatus();
    for (const Json* part : Flatten(*normalizer, "normalizers")) {
      if (TypeOf(*part) != "NFC") {
        return Unsupported(At("normalizer"), Describe(*normalizer) + " (known: NFC)");
      }
      spec_.nfc = true;
    }
    return absl::OkStatus();
  }

  absl::Status ReadPreTokenizer() {
    const Json* pre = JsonMember(root_, "pre_tokenizer");
    if (pre == nullptr) return Unsupported(At("pre_tokenizer"), "none");
    const std::vector<const Json*> parts = Flatten(*pre, "pretokenizers");
    if (parts.size() == 1 && IsByteLevel(*parts[0], true)) {
      spec_.pre_tokenizer = "gpt2";
    } else if (parts.size() == 2 && IsByteLevel(*parts[1], true) && TypeOf(*parts[0]) == "Digits" &&
               JsonIsBool(*parts[0], "individual_digits", true)) {
      spec_.pre_tokenizer = "smollm";
    } else if (parts.size() == 2 && IsByteLevel(*parts[1], false)) {
      const std::optional<std::string> regex = IsolatingSplit(*parts[0]);
      if (regex.has_value()) spec_.pre_tokenizer = PreTokenizer::NameOfSplit(*regex);
      if (regex.has_value() && spec_.pre_tokenizer.empty()) {
        return Unsupported(At("pre_tokenizer"), Describe(*pre) + " on the pattern " + *regex);
      }
    }
    if (spec_.pre_tokenizer.empty()) {
      return Unsupported(At("pre_tokenizer"),
                         Describe(*pre) +
                             " with these settings (known: the structures of gpt2, "
                             "smollm, llama-bpe and qwen2)");
    }
    return absl::OkStatus();
  }

  absl::Status ReadDecoder() {
    const Json* decoder = JsonMember(root_, "decoder");
    if (decoder == nullptr) return Unsupported(At("decoder"), "none");
    for (const Json* part : Flatten(*decoder, "decoders")) {
      if (TypeOf(*part) != "ByteLevel") {
        return Unsupported(At("decoder"), Describe(*decoder) + " (known: ByteLevel)");
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadPostProcessor() {
    const Json* post = JsonMember(root_, "post_processor");
    if (post == nullptr) return absl::OkStatus();
    bool seen = false;
    for (const Json* part : Flatten(*post, "processors")) {
      if (TypeOf(*part) == "ByteLevel") continue;  // moves offsets only
      if (TypeOf(*part) != "TemplateProcessing" || seen) {
        return Unsupported(At("post_processor"),
                           Describe(*post) + " (known: ByteLevel and one TemplateProcessing)");
      }
      seen = true;
      if (absl::Status status = ReadTemplate(*part); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status ReadTemplate(const Json& processor) {
    const std::string where = At("post_processor.single");
    const Json* single = JsonMember(processor, "single");
    if (single == nullptr || !single->is_array()) return Invalid(where, "is not an array");
    bool after_text = false;
    for (const Json& piece : *single) {
      const Json* sequence = JsonMember(piece, "Sequence");
      const Json* special = JsonMember(piece, "SpecialToken");
      if (sequence != nullptr && !after_text) {
        after_text = true;
        continue;
      }
      if (special == nullptr) {
        return Invalid(where, "needs special tokens and one sequence, has " + piece.dump());
      }
      absl::Status status =
          AppendTemplateIds(processor, *special, after_text ? &spec_.suffix : &spec_.prefix);
      if (!status.ok()) return status;
    }
    if (!after_text) return Invalid(where, "has no sequence");
    return absl::OkStatus();
  }

  absl::Status AppendTemplateIds(const Json& processor, const Json& special,
                                 std::vector<std::int32_t>* ids) const {
    const Json* name = JsonMember(special, "id");
    const Json* table = JsonMember(processor, "special_tokens");
    if (name == nullptr || !name->is_string() || table == nullptr) {
      return Invalid(At("post_processor.special_tokens"), "is missing or has no such token");
    }
    const auto& text = name->get_ref<const std::string&>();
    const std::string where = At("post_processor.special_tokens[\"" + text + "\"].ids");
    const Json* entry = JsonMember(*table, text.c_str());
    const Json* list = entry == nullptr ? nullptr : JsonMember(*entry, "ids");
    if (list == nullptr || !list->is_array()) return Invalid(where, "is not an array");
    for (const Json& id : *list) {
      if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= spec_.tokens.size()) {
        return Invalid(where, id.dump() + " is not a token id");
      }
      ids->push_back(id.get<std::int32_t>());
    }
    return absl::OkStatus();
  }

  const Json& root_;
  const std::string file_;
  const Json* model_ = nullptr;
  bool byte_fallback_ = false;
  std::vector<bool> taken_;
  TokenizerSpec spec_;
};

}  // namespace

absl::StatusOr<TokenizerSpec> TokenizerSpecFromJson(std::string_view tokenizer_json,
                                                    std::string_view tokenizer_config_json,
                                                    std::string_view config_json,
                                                    const std::string& path) {
  const std::string file = path + "/tokenizer.json";
  absl::StatusOr<Json> root = ParseJson(tokenizer_json, file);
  if (!root.ok()) return root.status();
  absl::StatusOr<TokenizerSpec> spec = TokenizerJsonReader(*root, file).Read();
  if (!spec.ok()) return spec;
  absl::Status status = AddTokenizerConfig(tokenizer_config_json, path, &*spec);
  if (status.ok()) status = AddModelConfig(config_json, path, &*spec);
  if (!status.ok()) return status;
  AddKnownStopIds(&*spec);
  return spec;
}

}  // namespace metattn
