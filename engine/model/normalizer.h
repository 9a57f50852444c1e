// Unicode NFC for text that is well-formed UTF-8.
//
// Pure, thread safe. Errors: INTERNAL should utf8proc refuse. Cost: linear, plus n log n in runs of
// combining marks (utf8proc's own ordering is quadratic there, which a request could exploit).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace metattn {

// True for text that NFC surely leaves alone (ASCII), without looking at tables.
bool IsTriviallyNfc(std::string_view text);

absl::StatusOr<std::string> ToNfc(std::string_view text);

}  // namespace metattn
