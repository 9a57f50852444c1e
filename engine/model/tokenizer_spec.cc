#include "engine/model/tokenizer_spec.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "engine/model/utf8.h"

namespace metattn {
namespace {

// No real token comes near; it bounds what a hostile file can make matching cost.
constexpr std::size_t kMaxAddedTokenBytes = 1024;

constexpr std::array<std::string_view, 6> kStopTokens = {
    "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "</s>"};

absl::Status NoSuchToken(std::string_view token, const std::string& where) {
  return absl::InvalidArgumentError(
      absl::StrCat(where, ": \"", std::string(token), "\" is not in the vocabulary"));
}

}  // namespace

absl::StatusOr<BpeModel::Merge> ResolveMerge(const TokenizerSpec& spec, std::string_view left,
                                             std::string_view right, const std::string& where) {
  const std::string left_text(left), right_text(right);
  const auto left_id = spec.ids.find(left_text);
  if (left_id == spec.ids.end()) return NoSuchToken(left, where);
  const auto right_id = spec.ids.find(right_text);
  if (right_id == spec.ids.end()) return NoSuchToken(right, where);
  const auto result = spec.ids.find(left_text + right_text);
  if (result == spec.ids.end()) return NoSuchToken(left_text + right_text, where);
  return BpeModel::Merge{left_id->second, right_id->second, result->second};
}

absl::StatusOr<BpeModel::Merge> ResolveMergeLine(const TokenizerSpec& spec, std::string_view line,
                                                 const std::string& where) {
  const std::size_t space = line.find(' ');
  if (space == std::string_view::npos || space == 0 || space + 1 == line.size() ||
      line.find(' ', space + 1) != std::string_view::npos) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": \"", std::string(line),
                                                   "\" is not two tokens with a space between"));
  }
  return ResolveMerge(spec, line.substr(0, space), line.substr(space + 1), where);
}

absl::Status CheckAddedToken(const AddedToken& token, const std::string& where) {
  if (token.content.empty()) return absl::InvalidArgumentError(where + ": the token is empty");
  if (token.content.size() > kMaxAddedTokenBytes) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": the token has ", token.content.size(),
                                                   " bytes, more than ", kMaxAddedTokenBytes));
  }
  if (utf8::FirstInvalid(token.content) != std::string_view::npos) {
    return absl::InvalidArgumentError(where + ": the token is not valid UTF-8");
  }
  return absl::OkStatus();
}

void AddKnownStopIds(TokenizerSpec* spec) {
  for (const AddedToken& token : spec->added) {
    if (!token.special) continue;
    const bool stops =
        std::find(kStopTokens.begin(), kStopTokens.end(), token.content) != kStopTokens.end();
    const bool listed =
        std::find(spec->stop_ids.begin(), spec->stop_ids.end(), token.id) != spec->stop_ids.end();
    if (stops && !listed) spec->stop_ids.push_back(token.id);
  }
}

}  // namespace metattn
