// The index of the largest value of each row.
#include <limits>

#include "kernels/check_args.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn::ref {

void RefKernels::ArgMax(const ArgMaxArgs& args, Stream&) {
  CheckArgs(args);
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const float* x = args.x.As<float>() + row * args.dim;
    Largest best = {-std::numeric_limits<float>::infinity(), 0};
    for (std::int64_t i = 0; i < args.dim; ++i) {
      if (x[i] > best.value) best = {x[i], static_cast<std::int32_t>(i)};
    }
    args.out.As<Largest>()[row] = best;
  }
}

}  // namespace metattn::ref
