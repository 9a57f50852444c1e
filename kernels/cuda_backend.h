// The CUDA backend as an optional part of a program: present when kernels/cuda is linked in.
//
// The declaration is weak, so that programs without it link too; kernels/cuda defines it. Callers
// ask HasCudaBackend first.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"

namespace metattn {

// NOT_FOUND without the GPU that the options name, RESOURCE_EXHAUSTED when others hold its memory,
// INTERNAL when the driver refuses.
[[gnu::weak]] absl::StatusOr<std::unique_ptr<Kernels>> MakeCudaKernels(
    const KernelsOptions& options);

inline bool HasCudaBackend() { return &MakeCudaKernels != nullptr; }

}  // namespace metattn
