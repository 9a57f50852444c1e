#include "engine/model/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/utf8.h"

namespace metattn {
namespace {

int CombiningClass(std::int32_t c) { return utf8proc_get_property(c)->combining_class; }

absl::Status Refused(utf8proc_ssize_t code) {
  return absl::InternalError(absl::StrCat("Unicode normalisation failed: ", utf8proc_errmsg(code)));
}

// Orders each run of combining marks by its class, marks of one class as they came.
void OrderMarks(std::vector<std::int32_t>* text) {
  std::size_t i = 0;
  while (i < text->size()) {
    if (CombiningClass((*text)[i]) == 0) {
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < text->size() && CombiningClass((*text)[end]) != 0) ++end;
    std::stable_sort(text->begin() + i, text->begin() + end, [](std::int32_t a, std::int32_t b) {
      return CombiningClass(a) < CombiningClass(b);
    });
    i = end;
  }
}

}  // namespace

bool IsTriviallyNfc(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

absl::StatusOr<std::string> ToNfc(std::string_view text) {
  std::vector<std::int32_t> chars;
  chars.reserve(text.size());
  constexpr std::size_t kMost = 8;  // a character decomposes into at most four
  std::int32_t parts[kMost];
  std::size_t length = 0;
  for (std::size_t i = 0; i < text.size(); i += length) {
    const char32_t c = utf8::Decode(text, i, &length);
    int last_class = 0;
    const utf8proc_ssize_t n = utf8proc_decompose_char(static_cast<std::int32_t>(c), parts, kMost,
                                                       UTF8PROC_DECOMPOSE, &last_class);
    if (n < 0 || n > static_cast<utf8proc_ssize_t>(kMost)) return Refused(n);
    chars.insert(chars.end(), parts, parts + n);
  }
  OrderMarks(&chars);
  const utf8proc_ssize_t n =
      utf8proc_normalize_utf32(chars.data(), static_cast<utf8proc_ssize_t>(chars.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (n < 0) return Refused(n);
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < n; ++i) utf8::Append(static_cast<char32_t>(chars[i]), &out);
  return out;
}

}  // namespace metattn
