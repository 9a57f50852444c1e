// Table look-up: embedding rows by token id, rows of activations by index.
#include <algorithm>

#include "kernels/check_args.h"
#include "kernels/ref/matrix.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn::ref {

void RefKernels::Embed(const EmbedArgs& args, Stream&) {
  CheckArgs(args);
  const auto& table = static_cast<const RefMatrix&>(*args.table);
  const auto* ids = args.ids.As<std::int32_t>();
  auto* out = args.out.As<float>();
  for (std::int64_t t = 0; t < args.tokens; ++t, out += table.cols()) {
    const std::int64_t row = ids[t] - args.first_id;
    if (row >= 0 && row < table.rows()) {
      table.Row(row, out);
    } else {
      std::fill_n(out, table.cols(), 0.0f);
    }
  }
}

void RefKernels::Gather(const GatherArgs& args, Stream&) {
  CheckArgs(args);
  const auto* rows = args.rows.As<std::int32_t>();
  for (std::int64_t i = 0; i < args.count; ++i) {
    std::copy_n(args.x.As<float>() + rows[i] * args.dim, args.dim,
                args.out.As<float>() + i * args.dim);
  }
}

}  // namespace metattn::ref
