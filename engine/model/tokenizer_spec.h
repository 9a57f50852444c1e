// What a model file says about its tokenizer, checked, before it becomes a Tokenizer.
//
// The parsers (GGUF, tokenizer.json) fill it in; BuildTokenizer turns it into the object the engine
// uses. Plain data. Errors: INVALID_ARGUMENT and UNIMPLEMENTED, each naming the file and the key.
// Cost: a copy of vocabulary and merges.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"
#include "engine/formats/gguf.h"
#include "engine/model/added_tokens.h"
#include "engine/model/bpe.h"
#include "engine/model/tokenizer.h"

namespace metattn {

struct TokenizerSpec {
  // By id, as the file writes them: in the byte alphabet, added tokens as plain text.
  std::vector<std::string> tokens;
  std::unordered_map<std::string, std::int32_t> ids;  // of `tokens`
  std::vector<BpeModel::Merge> merges;
  std::vector<AddedToken> added;
  std::string pre_tokenizer;     // a name PreTokenizer knows
  bool nfc = false;              // text is brought to Unicode NFC first
  bool ignore_merges = false;    // a word that is a token is that token, whatever the merges
  std::int32_t unknown_id = -1;  // for bytes without a token; -1: such bytes are dropped
  bool fuse_unknown = false;
  std::vector<std::int32_t> prefix, suffix;  // put around the text by add_special
  std::int32_t bos_id = -1;
  std::vector<std::int32_t> stop_ids;
  std::string chat_template;
};

absl::StatusOr<TokenizerSpec> TokenizerSpecFromGguf(const Gguf& gguf, const std::string& path);
// config_json and tokenizer_config_json may be empty.
absl::StatusOr<TokenizerSpec> TokenizerSpecFromJson(std::string_view tokenizer_json,
                                                    std::string_view tokenizer_config_json,
                                                    std::string_view config_json,
                                                    const std::string& path);

absl::StatusOr<std::unique_ptr<Tokenizer>> BuildTokenizer(TokenizerSpec spec,
                                                          const std::string& path);

// Shared by the two parsers.
//
// The merge of `left` and `right`; `where` names the entry in messages.
absl::StatusOr<BpeModel::Merge> ResolveMerge(const TokenizerSpec& spec, std::string_view left,
                                             std::string_view right, const std::string& where);
// The same for "left right" written as one string.
absl::StatusOr<BpeModel::Merge> ResolveMergeLine(const TokenizerSpec& spec, std::string_view line,
                                                 const std::string& where);
// An error that names what is wrong with an added token.
absl::Status CheckAddedToken(const AddedToken& token, const std::string& where);
// Adds the end of text and end of turn tokens that well-known models have to stop_ids (which may
// hold the model's own EOS already), so that a base model's EOS does not hide the turn's end.
void AddKnownStopIds(TokenizerSpec* spec);

// tokenizer_config.json and config.json of the directory `path`; empty text adds nothing.
absl::Status AddTokenizerConfig(std::string_view text, const std::string& path,
                                TokenizerSpec* spec);
absl::Status AddModelConfig(std::string_view text, const std::string& path, TokenizerSpec* spec);

}  // namespace metattn
