// SwiGLU: silu(gate) * up with silu(x) = x / (1 + exp(-x)).
#include <cmath>

#include "kernels/check_args.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn::ref {

void RefKernels::SwiGlu(const SwiGluArgs& args, Stream&) {
  CheckArgs(args);
  for (std::int64_t t = 0; t < args.tokens; ++t) {
    const float* gate = args.gate_up.As<float>() + t * 2 * args.dim;
    const float* up = gate + args.dim;
    float* out = args.out.As<float>() + t * args.dim;
    for (std::int64_t i = 0; i < args.dim; ++i) {
      out[i] = static_cast<float>(gate[i] / (1.0 + std::exp(-double{gate[i]})) * up[i]);
    }
  }
}

}  // namespace metattn::ref
