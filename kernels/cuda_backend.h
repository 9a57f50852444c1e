// The CUDA backend as an optional part of a program: present when kernels/cuda is linked in.
//
// The declaration is weak, so that programs without it link too; kernels/cuda defines it. Callers
// ask HasCudaBackend first.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "kernels/kernels.h"

namespace metattn {

// On the GPU of that number; deterministic as KernelsOptions says. NOT_FOUND without one, INTERNAL
// when the driver refuses.
[[gnu::weak]] absl::StatusOr<std::unique_ptr<Kernels>> MakeCudaKernels(int device,
                                                                       bool deterministic);

inline bool HasCudaBackend() { return &MakeCudaKernels != nullptr; }

}  // namespace metattn
