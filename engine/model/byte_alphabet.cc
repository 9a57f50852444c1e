#include "engine/model/byte_alphabet.h"

#include <array>
#include <cstddef>

#include "engine/model/utf8.h"

namespace metattn {
namespace {

constexpr char32_t kFirstMoved = 0x100;
constexpr int kMoved = 68;

constexpr bool StandsForItself(int byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

struct Tables {
  std::array<char32_t, 256> to_char{};
  std::array<std::int16_t, 0x100 + kMoved> to_byte{};  // -1: not in the alphabet
};

constexpr Tables MakeTables() {
  Tables tables;
  for (auto& entry : tables.to_byte) entry = -1;
  char32_t next = kFirstMoved;
  for (int byte = 0; byte < 256; ++byte) {
    const char32_t c = StandsForItself(byte) ? static_cast<char32_t>(byte) : next++;
    tables.to_char[byte] = c;
    tables.to_byte[c] = static_cast<std::int16_t>(byte);
  }
  return tables;
}

constexpr Tables kTables = MakeTables();

}  // namespace

char32_t ByteToAlphabet(std::uint8_t byte) { return kTables.to_char[byte]; }

std::string ToByteAlphabet(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char byte : bytes) {
    utf8::Append(ByteToAlphabet(static_cast<std::uint8_t>(byte)), &text);
  }
  return text;
}

std::optional<std::string> FromByteAlphabet(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  std::size_t length = 0;
  for (std::size_t i = 0; i < text.size(); i += length) {
    const char32_t c = utf8::Decode(text, i, &length);
    if (c >= kTables.to_byte.size() || kTables.to_byte[c] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kTables.to_byte[c]));
  }
  return bytes;
}

}  // namespace metattn
