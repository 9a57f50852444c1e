#include "engine/model/added_tokens.h"

#include <algorithm>
#include <utility>

#include "engine/model/utf8.h"

namespace metattn {
namespace {

// Unicode's White_Space: what lstrip and rstrip swallow.
bool IsSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// The first byte of the white space that ends at text[end], not left of `floor`.
std::size_t SpaceBefore(std::string_view text, std::size_t floor, std::size_t end) {
  std::size_t begin = end;
  while (begin > floor) {
    std::size_t at = begin - 1;
    while (at > floor && (static_cast<std::uint8_t>(text[at]) & 0xC0) == 0x80) --at;
    std::size_t length = 0;
    if (!IsSpace(utf8::Decode(text, at, &length))) break;
    begin = at;
  }
  return begin;
}

std::size_t SpaceAfter(std::string_view text, std::size_t end) {
  std::size_t length = 0;
  while (end < text.size() && IsSpace(utf8::Decode(text, end, &length))) end += length;
  return end;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  ends_.push_back(kNone);
  for (std::size_t t = 0; t < tokens_.size(); ++t) {
    const std::string& content = tokens_[t].content;
    first_[static_cast<std::uint8_t>(content[0])] = true;
    std::uint32_t node = 0;
    for (const char byte : content) {
      const auto [edge, is_new] =
          edges_.try_emplace((std::uint64_t{node} << 8) | static_cast<std::uint8_t>(byte),
                             static_cast<std::uint32_t>(ends_.size()));
      if (is_new) ends_.push_back(kNone);
      node = edge->second;
    }
    ends_[node] = static_cast<std::int32_t>(t);
  }
}

const AddedToken* AddedTokenMatcher::LongestAt(std::string_view text, std::size_t at) const {
  const AddedToken* longest = nullptr;
  std::uint32_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const auto edge = edges_.find((std::uint64_t{node} << 8) | static_cast<std::uint8_t>(text[i]));
    if (edge == edges_.end()) break;
    node = edge->second;
    if (ends_[node] != kNone) longest = &tokens_[ends_[node]];
  }
  return longest;
}

void AddedTokenMatcher::Find(std::string_view text, bool special,
                             std::vector<AddedPiece>* pieces) const {
  std::size_t done = 0;  // everything left of it is in pieces
  std::size_t at = 0;
  while (at < text.size()) {
    if (!first_[static_cast<std::uint8_t>(text[at])]) {
      ++at;
      continue;
    }
    const AddedToken* token = LongestAt(text, at);
    if (token == nullptr) {
      ++at;
      continue;
    }
    std::size_t begin = at;
    std::size_t end = at + token->content.size();
    at = end;
    if (token->special && !special) continue;
    if (token->lstrip) begin = SpaceBefore(text, done, begin);
    if (token->rstrip) end = SpaceAfter(text, end);
    if (begin > done) pieces->push_back({-1, text.substr(done, begin - done)});
    pieces->push_back({token->id, text.substr(begin, end - begin)});
    done = at = end;
  }
  if (done < text.size()) pieces->push_back({-1, text.substr(done)});
}

}  // namespace metattn
