// The text side of one generation: tokens in, certain text out, stop strings found across tokens.
//
// Text is held back only while it may still become a stop string (or a whole character, see
// StreamDecoder); what comes out is always valid UTF-8 and ends before the match. The match that
// ends first counts, of several the longest, so the result does not depend on token borders.
// Borrows the tokenizer. One thread. Cost: O(bytes x stop strings).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/tokenizer.h"

namespace metattn {

// Looks for any of several strings in text that arrives in pieces.
class StopMatcher {
 public:
  explicit StopMatcher(const std::vector<std::string>& stops);

  // Text that can no longer be part of a match. After a match: what lies before it, then nothing.
  std::string Push(std::string_view text);
  std::string Flush();  // no more text comes: what was held back
  bool matched() const { return matched_; }
  const std::string& match() const { return match_; }  // empty before matched()

 private:
  struct Pattern {
    std::string text;
    std::vector<std::size_t> fallback;  // [i]: longest border of text[0 .. i]
    std::size_t state = 0;              // bytes matched so far
  };
  std::vector<Pattern> patterns_;
  std::string held_;
  std::string match_;
  bool matched_ = false;
};

class TextOutput {
 public:
  TextOutput(const Tokenizer& tokenizer, bool special, const std::vector<std::string>& stops)
      : decoder_(tokenizer, special), matcher_(stops) {}

  // Text that became certain with this token.
  std::string Push(std::int32_t id) { return matcher_.Push(decoder_.Push(id)); }
  // The rest, at the end. May still find a match.
  std::string Finish();
  bool matched() const { return matcher_.matched(); }
  const std::string& match() const { return matcher_.match(); }

 private:
  StreamDecoder decoder_;
  StopMatcher matcher_;
};

}  // namespace metattn
