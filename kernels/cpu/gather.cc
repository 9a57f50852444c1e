#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

void Gather(const GatherArgs& args, OpContext&) {
  const auto* x = args.x.As<float>();
  const auto* rows = args.rows.As<std::int32_t>();
  auto* out = args.out.As<float>();
  for (std::int64_t i = 0; i < args.count; ++i) {
    std::memcpy(out + i * args.dim, x + rows[i] * args.dim,
                static_cast<std::size_t>(args.dim) * sizeof(float));
  }
}

}  // namespace metattn::cpu::METATTN_ISA
