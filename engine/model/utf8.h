// UTF-8 as the tokenizer needs it: where text is ill-formed, repairing it, cutting it at
// characters.
//
// "Maximal subpart" is Unicode's: the longest run of bytes that could have begun a character; each
// one becomes one U+FFFD, so joining repaired pieces equals repairing the joined text as long as
// pieces end where IncompleteTail is 0. Pure functions, thread safe, no errors. Cost: linear.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace metattn::utf8 {

// One step through bytes that need not be well formed.
struct Step {
  std::size_t length = 0;  // bytes of the character, or of the maximal ill-formed subpart; >= 1
  bool valid = false;      // a whole character
  bool truncated = false;  // ill-formed only because the bytes end here
};

// The step at s[i]; i < s.size().
Step Next(std::string_view s, std::size_t i);

// Offset of the first ill-formed byte sequence; npos when the whole text is well formed.
std::size_t FirstInvalid(std::string_view s);

// How many bytes at the end (0 to 3) may still become a character.
std::size_t IncompleteTail(std::string_view s);

// Appends s to out with every maximal ill-formed subpart replaced by U+FFFD.
void AppendRepaired(std::string_view s, std::string* out);

// The character at s[i] of well-formed text; *length receives its bytes.
char32_t Decode(std::string_view s, std::size_t i, std::size_t* length);

// Appends one Unicode scalar value.
void Append(char32_t c, std::string* out);

}  // namespace metattn::utf8
