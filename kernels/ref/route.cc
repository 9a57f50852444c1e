// Decisions forced by the request's policy, and the work lists that come from decisions.
#include <algorithm>

#include "kernels/check_args.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn::ref {

void RefKernels::ForcedRoute(const ForcedRouteArgs& args, Stream&) {
  CheckArgs(args);
  const auto* far_end = args.rows.far_end.As<std::int32_t>();
  const auto* route = args.route.As<std::uint8_t>();
  for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
    const bool eligible = args.rows.Eligible(far_end[t]);
    std::fill_n(args.decisions.As<std::uint8_t>() + t * args.heads, args.heads,
                eligible ? route[t] : static_cast<std::uint8_t>(Mechanism::kLocal));
  }
}

void RefKernels::Compact(const CompactArgs& args, Stream&) {
  CheckArgs(args);
  const auto* decisions = args.decisions.As<std::uint8_t>();
  for (int h = 0; h < args.heads; ++h) {
    auto* rows = args.list.rows.As<std::int32_t>() + h * args.list.capacity;
    std::int32_t count = 0;
    for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
      const std::uint8_t decision = decisions[t * args.heads + h];
      const bool mixture = args.mixtures && decision == kMixture;
      if (!mixture && decision != static_cast<std::uint8_t>(args.mechanism)) continue;
      rows[count++] = static_cast<std::int32_t>(t);
    }
    args.list.counts.As<std::int32_t>()[h] = count;
  }
}

}  // namespace metattn::ref
