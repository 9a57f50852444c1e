#include "engine/model/utf8.h"

#include <cstdint>
#include <cstring>

namespace metattn::utf8 {
namespace {

std::uint8_t Byte(std::string_view s, std::size_t i) { return static_cast<std::uint8_t>(s[i]); }

// Bytes of the character a lead byte announces; 0 for a byte that cannot lead.
std::size_t LeadLength(std::uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;  // continuation bytes, and the overlong leads C0 and C1
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// The second byte is where overlong forms, surrogates and values past U+10FFFF are told apart.
bool SecondFits(std::uint8_t lead, std::uint8_t second) {
  std::uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  return second >= low && second <= high;
}

}  // namespace

Step Next(std::string_view s, std::size_t i) {
  const std::uint8_t lead = Byte(s, i);
  const std::size_t want = LeadLength(lead);
  if (want == 1) return {1, true, false};
  if (want == 0) return {1, false, false};
  for (std::size_t k = 1; k < want; ++k) {
    if (i + k == s.size()) return {k, false, true};
    const std::uint8_t byte = Byte(s, i + k);
    const bool fits = k == 1 ? SecondFits(lead, byte) : (byte & 0xC0) == 0x80;
    if (!fits) return {k, false, false};
  }
  return {want, true, false};
}

std::size_t FirstInvalid(std::string_view s) {
  std::size_t i = 0;
  while (i < s.size()) {
    std::uint64_t eight = 0;  // most text is ASCII: eight bytes at a time
    while (i + sizeof(eight) <= s.size()) {
      std::memcpy(&eight, s.data() + i, sizeof(eight));
      if ((eight & 0x8080808080808080u) != 0) break;
      i += sizeof(eight);
    }
    if (i == s.size()) break;
    const Step step = Next(s, i);
    if (!step.valid) return i;
    i += step.length;
  }
  return std::string_view::npos;
}

std::size_t IncompleteTail(std::string_view s) {
  const std::size_t reach = s.size() < 3 ? s.size() : 3;
  for (std::size_t back = 1; back <= reach; ++back) {
    const std::size_t i = s.size() - back;
    if ((Byte(s, i) & 0xC0) == 0x80) continue;  // continuation: its lead lies further left
    const Step step = Next(s, i);
    return step.truncated && step.length == back ? back : 0;
  }
  return 0;
}

void AppendRepaired(std::string_view s, std::string* out) {
  while (!s.empty()) {
    const std::size_t bad = FirstInvalid(s);
    out->append(s.substr(0, bad));
    if (bad == std::string_view::npos) return;
    out->append("\xEF\xBF\xBD");
    s.remove_prefix(bad + Next(s, bad).length);
  }
}

char32_t Decode(std::string_view s, std::size_t i, std::size_t* length) {
  const std::uint8_t lead = Byte(s, i);
  const std::size_t n = LeadLength(lead);
  *length = n == 0 ? 1 : n;
  if (n <= 1) return lead;
  char32_t c = lead & (0xFFu >> (n + 1));
  for (std::size_t k = 1; k < n; ++k) c = (c << 6) | (Byte(s, i + k) & 0x3Fu);
  return c;
}

void Append(char32_t c, std::string* out) {
  if (c < 0x80) {
    out->push_back(static_cast<char>(c));
    return;
  }
  const int extra = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  const unsigned lead_mark = extra == 1 ? 0xC0u : extra == 2 ? 0xE0u : 0xF0u;
  out->push_back(static_cast<char>(lead_mark | (c >> (6 * extra))));
  for (int k = extra - 1; k >= 0; --k) {
    out->push_back(static_cast<char>(0x80u | ((c >> (6 * k)) & 0x3Fu)));
  }
}

}  // namespace metattn::utf8
