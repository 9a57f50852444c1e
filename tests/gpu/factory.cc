// The factory of backends for programs that tests/gpu/run.sh builds: ref and cuda. The cpu backend
// needs one compilation per instruction set and an x86 host; nothing here tests it.
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda_backend.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn {

absl::StatusOr<std::unique_ptr<Kernels>> MakeKernels(const KernelsOptions& options) {
  if (options.backend == "ref") return std::make_unique<ref::RefKernels>();
  if (options.backend == "cuda") return MakeCudaKernels(options);
  return absl::InvalidArgumentError(absl::StrCat("no backend \"", options.backend, "\" here"));
}

// The tests' list of backends asks for it.
const std::vector<std::string_view>& cpu::AvailableIsas() {
  static const std::vector<std::string_view> none;
  return none;
}

}  // namespace metattn
