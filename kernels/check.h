// METATTN_CHECK(condition, message): ends the process when our own code broke a promise.
//
// For bugs only: whatever input, disk, a peer or a device can cause is an absl::Status instead.
// Prints file:line, the condition and the message to stderr, then aborts; always on, in every
// build. Thread safe. Cost: one predicted branch; `message` (anything that makes a std::string) is
// evaluated only on failure.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace metattn::internal {

[[noreturn]] [[gnu::cold]] [[gnu::noinline]] inline void CheckFailed(const char* file, int line,
                                                                     const char* condition,
                                                                     const std::string& message) {
  std::fprintf(stderr, "%s:%d: CHECK failed: %s: %s\n", file, line, condition, message.c_str());
  std::fflush(stderr);
  std::abort();
}

}  // namespace metattn::internal

#define METATTN_CHECK(condition, message)                                                     \
  do {                                                                                        \
    if (!(condition)) [[unlikely]] {                                                          \
      ::metattn::internal::CheckFailed(__FILE__, __LINE__, #condition, std::string(message)); \
    }                                                                                         \
  } while (false)
