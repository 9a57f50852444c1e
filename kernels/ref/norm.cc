// RMSNorm after adding the branch's output to the residual.
#include <cmath>

#include "kernels/check_args.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn::ref {

void RefKernels::Norm(const NormArgs& args, Stream&) {
  CheckArgs(args);
  const auto* weight = args.weight.As<float>();
  for (std::int64_t t = 0; t < args.tokens; ++t) {
    float* x = args.residual.As<float>() + t * args.dim;
    float* out = args.out.As<float>() + t * args.dim;
    if (args.delta) {
      const float* delta = args.delta.As<float>() + t * args.dim;
      for (std::int64_t i = 0; i < args.dim; ++i) x[i] += delta[i];
    }
    double squares = 0;
    for (std::int64_t i = 0; i < args.dim; ++i) squares += double{x[i]} * x[i];
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(args.dim) + args.eps);
    for (std::int64_t i = 0; i < args.dim; ++i) {
      out[i] = static_cast<float>(x[i] * factor * weight[i]);
    }
  }
}

}  // namespace metattn::ref
