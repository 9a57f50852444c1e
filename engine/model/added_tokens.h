// Finds added tokens (special ones and others) written in text: leftmost first, then longest, as
// Hugging Face's added vocabulary does.
//
// Immutable and thread safe after construction. No errors: the parsers have checked the tokens.
// Cost: Find is linear in the text times the longest token that matches there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace metattn {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;      // UTF-8, not empty
  bool special = false;     // a control token: only found where the caller allows it
  bool normalized = false;  // looked for after normalisation instead of before
  bool lstrip = false;      // swallows the white space to its left
  bool rstrip = false;      // and to its right
};

// A stretch of text: a token that was found, or what lies between two (id -1). Never empty text.
struct AddedPiece {
  std::int32_t id = -1;
  std::string_view text;
};

class AddedTokenMatcher {
 public:
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  // Appends the pieces of `text` (well-formed UTF-8) in order. Where `special` is false a special
  // token stays text, and so does any other token that begins inside it.
  void Find(std::string_view text, bool special, std::vector<AddedPiece>* pieces) const;

 private:
  static constexpr std::int32_t kNone = -1;

  // The longest token that begins at text[at]; null if none does.
  const AddedToken* LongestAt(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;
  std::array<bool, 256> first_{};  // bytes some token begins with
  // A trie of bytes: (node << 8 | byte) -> node, and per node the token that ends there.
  std::unordered_map<std::uint64_t, std::uint32_t> edges_;
  std::vector<std::int32_t> ends_;
};

}  // namespace metattn
