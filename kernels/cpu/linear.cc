#include "kernels/cpu/linear.h"

#include "kernels/cpu/ops.h"

namespace metattn::cpu::METATTN_ISA {

void Linear(const PackedMatrix& weight, const LinearArgs& args, OpContext& context) {
  if (args.tokens == 0 || weight.rows() == 0) return;
  const LinearJob job{weight, args.x.As<float>(), args.bias.As<float>(), args.out.As<float>(),
                      args.tokens};
#if defined(__AVX512BF16__)
  if (!context.deterministic && args.tokens >= kTileTokens) return LinearTiles(job, context);
#endif
  LinearRows(job, context);
}

}  // namespace metattn::cpu::METATTN_ISA
