// Instruction-set levels of the cpu backend: what was built, what this machine runs, which to use.
//
// Ownership: none; names and tables are static. Thread safe (the processor is asked once). Errors:
// INVALID_ARGUMENT that lists what there is. Cost: a table look-up.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace metattn::cpu {

struct OpTable;  // kernels/cpu/op_table.h

// Names of the levels this machine can run, the slowest first, best last: of "avx2" (AVX2, FMA,
// F16C), "avx512" (F, BW, DQ, VL), "avx512_bf16" (and BF16) and "amx" (and AMX tiles with bf16; the
// kernel's permission for tile state was granted). Empty on a machine without AVX2.
const std::vector<std::string_view>& AvailableIsas();

// The table for `wanted`; if that is empty, for environment variable METATTN_CPU_ISA; if that is
// unset or empty too, for the best level.
absl::StatusOr<const OpTable*> SelectIsa(std::string_view wanted);

// The choice behind SelectIsa, for tests: a name out of `available`, both lists slowest first.
struct IsaChoice {
  std::string_view option, environment;
  const std::vector<std::string_view>& known;
  const std::vector<std::string_view>& available;
};
absl::StatusOr<std::string_view> ChooseIsa(const IsaChoice& choice);

}  // namespace metattn::cpu
