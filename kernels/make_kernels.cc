// The factory of backends. The ref backend needs no instruction set; the cpu backend resolves
// KernelsOptions::isa, METATTN_CPU_ISA and what the machine has; the cuda backend may not be linked
// in.
#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cuda_backend.h"
#include "kernels/kernels.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn {

absl::StatusOr<std::unique_ptr<Kernels>> MakeKernels(const KernelsOptions& options) {
  if (options.threads < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("threads must be at least 1, not ", options.threads));
  }
  if (options.backend == "ref") return std::make_unique<ref::RefKernels>();
  if (options.backend == "cpu") {
    absl::StatusOr<std::unique_ptr<cpu::CpuKernels>> kernels = cpu::CpuKernels::Create(options);
    if (!kernels.ok()) return kernels.status();
    return *std::move(kernels);
  }
  if (options.backend == "cuda") {
    if (HasCudaBackend()) return MakeCudaKernels(options);
    return absl::InvalidArgumentError("this program was built without the cuda backend");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown kernel backend \"", options.backend, "\"; there are: ref, cpu, cuda"));
}

}  // namespace metattn
