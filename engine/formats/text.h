// Small helpers for text that comes out of a file and is not trusted.
// Pure functions, thread safe.
#pragma once

#include <string>
#include <string_view>

namespace metattn {

// Well-formed UTF-8: no overlong forms, surrogates or code points past U+10FFFF. O(n).
bool IsUtf8(std::string_view text);

// Printable ASCII without blanks, at least one character: what keys and tensor names may hold.
bool IsPlainName(std::string_view text);

// 'text' in single quotes for a message: control and non-ASCII bytes escaped, cut after 80 bytes.
std::string Quoted(std::string_view text);

}  // namespace metattn
