// GPT-2's alphabet: every byte has one printable character, so that token lists are readable text.
//
// Bytes that are printable in Latin-1 stand for themselves; the other 68 (controls, space, DEL,
// 0x80-0xA0, soft hyphen) become U+0100, U+0101, ... in byte order. Pure, thread safe, no errors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace metattn {

// The character that stands for a byte.
char32_t ByteToAlphabet(std::uint8_t byte);

// Bytes written in the alphabet, as UTF-8.
std::string ToByteAlphabet(std::string_view bytes);

// The bytes a token's text stands for; nothing when a character is outside the alphabet (the text
// of an added token, for instance, may hold a space). `text` must be well-formed UTF-8.
std::optional<std::string> FromByteAlphabet(std::string_view text);

}  // namespace metattn
