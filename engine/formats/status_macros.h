// Early return on an absl::Status that is not OK; absl itself has no such macros.
// Each use evaluates its expression once.
#pragma once

#include <utility>

#include "absl/status/status.h"

#define METATTN_RETURN_IF_ERROR(expression)                                 \
  do {                                                                      \
    if (absl::Status metattn_status = (expression); !metattn_status.ok()) { \
      return metattn_status;                                                \
    }                                                                       \
  } while (false)

#define METATTN_CONCAT_INNER(a, b) a##b
#define METATTN_CONCAT(a, b) METATTN_CONCAT_INNER(a, b)
#define METATTN_ASSIGN_OR_RETURN_IMPL(temporary, target, expression) \
  auto temporary = (expression);                                     \
  if (!temporary.ok()) return temporary.status();                    \
  target = *std::move(temporary)

// METATTN_ASSIGN_OR_RETURN(auto x, F()): x is F()'s value, or F()'s status is returned.
#define METATTN_ASSIGN_OR_RETURN(target, expression) \
  METATTN_ASSIGN_OR_RETURN_IMPL(METATTN_CONCAT(metattn_or_, __LINE__), target, expression)
