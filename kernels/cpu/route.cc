// Decisions forced by the request's policy, and work lists. A few bytes per (row, head): not worth
// handing to other threads.
#include <cstdint>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {

void ForcedRoute(const ForcedRouteArgs& args, OpContext&) {
  const auto* far_end = args.rows.far_end.As<std::int32_t>();
  const auto* route = args.route.As<std::uint8_t>();
  auto* decisions = args.decisions.As<std::uint8_t>();
  for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
    const std::uint8_t decision =
        args.rows.Eligible(far_end[t]) ? route[t] : static_cast<std::uint8_t>(Mechanism::kLocal);
    for (int h = 0; h < args.heads; ++h) *decisions++ = decision;
  }
}

void Compact(const CompactArgs& args, OpContext&) {
  const auto wanted = static_cast<std::uint8_t>(args.mechanism);
  const std::uint8_t other = args.mixtures ? kMixture : wanted;
  const auto* decisions = args.decisions.As<std::uint8_t>();
  for (int h = 0; h < args.heads; ++h) {
    auto* rows = args.list.rows.As<std::int32_t>() + h * args.list.capacity;
    std::int32_t count = 0;
    for (std::int32_t t = 0; t < args.rows.tokens; ++t) {
      const std::uint8_t decision = decisions[std::int64_t{t} * args.heads + h];
      if (decision != wanted && decision != other) continue;
      rows[count++] = t;
    }
    args.list.counts.As<std::int32_t>()[h] = count;
  }
}

}  // namespace metattn::cpu::METATTN_ISA
