#include "kernels/ref/ref_kernels.h"

#include <memory>
#include <span>
#include <utility>

#include "absl/status/statusor.h"
#include "kernels/check_args.h"
#include "kernels/ref/matrix.h"
#include "kernels/ref/pages.h"

namespace metattn::ref {

std::int64_t RefKernels::PageBytes(int head_dim) const { return PageBytesFor(head_dim); }

absl::StatusOr<std::unique_ptr<Matrix>> RefKernels::Pack(std::span<const MatrixPart> parts,
                                                         std::int64_t cols) {
  CheckParts(parts, cols);
  auto matrix = RefMatrix::Create(parts, cols, *device_);
  if (!matrix.ok()) return matrix.status();
  return std::unique_ptr<Matrix>(std::move(*matrix));
}

}  // namespace metattn::ref
