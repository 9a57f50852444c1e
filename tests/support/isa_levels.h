// What tests must know of the cpu backend's instruction-set levels.
#pragma once

#include <string_view>

namespace metattn::testing {

// Whether products of many rows round their factors to bf16 on this level unless deterministic.
inline bool RoundsToBf16(std::string_view isa) { return isa == "avx512_bf16" || isa == "amx"; }

}  // namespace metattn::testing
