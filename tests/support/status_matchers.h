// Shared by tests: absl::Status with code and part of the message.
#pragma once

#include <gmock/gmock.h>

#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace metattn::test {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// EXPECT_THAT(result, Fails(absl::StatusCode::kInvalidArgument, "tensor 'x'")).
MATCHER_P2(Fails, code, part,
           "fails with " + absl::StatusCodeToString(code) + " and \"" + std::string(part) + "\"") {
  const absl::Status& status = StatusOf(arg);
  *result_listener << "status " << status.ToString();
  return status.code() == code && std::string(status.message()).find(part) != std::string::npos;
}

MATCHER(Succeeds, "is OK") {
  *result_listener << "status " << StatusOf(arg).ToString();
  return StatusOf(arg).ok();
}

}  // namespace metattn::test
