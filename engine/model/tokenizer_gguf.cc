// GGUF's tokenizer.* keys. What the format does not say (NFC, ignore_merges, whether BOS is added
// when the key is missing) follows from the pre-tokenizer's name, as in the models that bear it.
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "engine/model/pre_tokenizer.h"
#include "engine/model/tokenizer_spec.h"
#include "engine/model/utf8.h"

namespace metattn {
namespace {

// Values of tokenizer.ggml.token_type.
enum TokenType : std::int64_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

class GgufReader {
 public:
  GgufReader(const Gguf& gguf, const std::string& path) : gguf_(gguf), path_(path) {}

  absl::StatusOr<TokenizerSpec> Read() {
    for (auto step : {&GgufReader::ReadModel, &GgufReader::ReadTokens, &GgufReader::ReadTypes,
                      &GgufReader::ReadMerges, &GgufReader::ReadSpecials}) {
      if (absl::Status status = (this->*step)(); !status.ok()) return status;
    }
    return std::move(spec_);
  }

 private:
  std::string Key(const char* key) const { return absl::StrCat(path_, ": ", key); }
  absl::Status Missing(const char* key) const {
    return absl::InvalidArgumentError(
        Key(key) + " is missing or of the wrong type; the file has no usable tokenizer");
  }

  absl::Status ReadModel() {
    const auto model = gguf_.String("tokenizer.ggml.model");
    if (!model.has_value()) return Missing("tokenizer.ggml.model");
    if (*model != "gpt2") {
      return absl::UnimplementedError(absl::StrCat(Key("tokenizer.ggml.model"), " \"",
                                                   std::string(*model),
                                                   "\" is not supported (known: gpt2)"));
    }
    const auto pre = gguf_.String("tokenizer.ggml.pre");
    if (!pre.has_value()) return Missing("tokenizer.ggml.pre");
    absl::StatusOr<PreTokenizer> known = PreTokenizer::Create(*pre);
    if (!known.ok()) {
      return absl::Status(
          known.status().code(),
          absl::StrCat(Key("tokenizer.ggml.pre"), ": ", std::string(known.status().message())));
    }
    spec_.pre_tokenizer = std::string(known->name());
    spec_.nfc = known->name() == "qwen2";
    spec_.ignore_merges = known->name() == "llama-bpe";
    if (gguf_.Bool("tokenizer.ggml.add_space_prefix").value_or(false)) {
      return absl::UnimplementedError(Key("tokenizer.ggml.add_space_prefix") +
                                      " true is not supported");
    }
    return absl::OkStatus();
  }

  absl::Status ReadTokens() {
    const Gguf::Strings* tokens = gguf_.StringArray("tokenizer.ggml.tokens");
    if (tokens == nullptr || tokens->empty()) return Missing("tokenizer.ggml.tokens");
    if (tokens->size() > std::numeric_limits<std::int32_t>::max()) {
      return absl::InvalidArgumentError(Key("tokenizer.ggml.tokens") + ": too many tokens");
    }
    spec_.tokens.reserve(tokens->size());
    spec_.ids.reserve(tokens->size());
    for (std::size_t id = 0; id < tokens->size(); ++id) {
      const std::string text((*tokens)[id]);
      if (utf8::FirstInvalid(text) != std::string_view::npos) {
        return absl::InvalidArgumentError(
            absl::StrCat(Key("tokenizer.ggml.tokens"), "[", id, "] is not valid UTF-8"));
      }
      const auto [entry, is_new] = spec_.ids.emplace(text, static_cast<std::int32_t>(id));
      if (!is_new) {
        return absl::InvalidArgumentError(absl::StrCat(Key("tokenizer.ggml.tokens"), "[", id,
                                                       "] repeats token ", entry->second, ", \"",
                                                       text, "\""));
      }
      spec_.tokens.push_back(text);
    }
    return absl::OkStatus();
  }

  absl::Status ReadTypes() {
    const auto types = gguf_.IntArray("tokenizer.ggml.token_type");
    if (!types.has_value()) return Missing("tokenizer.ggml.token_type");
    if (types->size() != spec_.tokens.size()) {
      return absl::InvalidArgumentError(absl::StrCat(Key("tokenizer.ggml.token_type"), " has ",
                                                     types->size(), " entries for ",
                                                     spec_.tokens.size(), " tokens"));
    }
    for (std::size_t id = 0; id < types->size(); ++id) {
      const std::int64_t type = (*types)[id];
      const std::string where = absl::StrCat(Key("tokenizer.ggml.token_type"), "[", id, "]");
      if (type < kNormal || type > kByte) {
        return absl::InvalidArgumentError(absl::StrCat(where, " is ", type, ", not 1 to 6"));
      }
      if (type != kUnknown && type != kControl && type != kUserDefined) continue;
      AddedToken token{static_cast<std::int32_t>(id), spec_.tokens[id], type != kUserDefined};
      if (absl::Status status = CheckAddedToken(token, where); !status.ok()) return status;
      spec_.added.push_back(std::move(token));
    }
    return absl::OkStatus();
  }

  absl::Status ReadMerges() {
    const Gguf::Strings* merges = gguf_.StringArray("tokenizer.ggml.merges");
    if (merges == nullptr) return Missing("tokenizer.ggml.merges");
    if (merges->size() > std::numeric_limits<std::int32_t>::max()) {
      return absl::InvalidArgumentError(Key("tokenizer.ggml.merges") + ": too many merges");
    }
    spec_.merges.reserve(merges->size());
    for (std::size_t rank = 0; rank < merges->size(); ++rank) {
      absl::StatusOr<BpeModel::Merge> merge = ResolveMergeLine(
          spec_, (*merges)[rank], absl::StrCat(Key("tokenizer.ggml.merges"), "[", rank, "]"));
      if (!merge.ok()) return merge.status();
      spec_.merges.push_back(*merge);
    }
    return absl::OkStatus();
  }

  // The id under `key`; -1 when the key is absent.
  absl::StatusOr<std::int32_t> Id(const char* key) const {
    if (gguf_.metadata().count(key) == 0) return -1;
    const std::optional<std::int64_t> id = gguf_.Int(key);
    if (!id.has_value() || *id < 0 || *id >= static_cast<std::int64_t>(spec_.tokens.size())) {
      return absl::InvalidArgumentError(
          absl::StrCat(Key(key), " is not one of the ", spec_.tokens.size(), " token ids"));
    }
    return static_cast<std::int32_t>(*id);
  }

  absl::Status ReadSpecials() {
    const auto bos = Id("tokenizer.ggml.bos_token_id");
    const auto eos = Id("tokenizer.ggml.eos_token_id");
    const auto eot = Id("tokenizer.ggml.eot_token_id");
    for (const auto* id : {&bos, &eos, &eot}) {
      if (!id->ok()) return id->status();
    }
    spec_.bos_id = *bos;
    if (*eos >= 0) spec_.stop_ids.push_back(*eos);
    if (*eot >= 0 && *eot != *eos) spec_.stop_ids.push_back(*eot);
    AddKnownStopIds(&spec_);
    const bool add_bos =
        gguf_.Bool("tokenizer.ggml.add_bos_token").value_or(spec_.pre_tokenizer == "llama-bpe");
    const bool add_eos = gguf_.Bool("tokenizer.ggml.add_eos_token").value_or(false);
    if (add_bos && *bos < 0) return Missing("tokenizer.ggml.bos_token_id");
    if (add_eos && *eos < 0) return Missing("tokenizer.ggml.eos_token_id");
    if (add_bos) spec_.prefix.push_back(*bos);
    if (add_eos) spec_.suffix.push_back(*eos);
    spec_.chat_template = std::string(gguf_.String("tokenizer.chat_template").value_or(""));
    return absl::OkStatus();
  }

  const Gguf& gguf_;
  const std::string& path_;
  TokenizerSpec spec_;
};

}  // namespace

absl::StatusOr<TokenizerSpec> TokenizerSpecFromGguf(const Gguf& gguf, const std::string& path) {
  return GgufReader(gguf, path).Read();
}

}  // namespace metattn
