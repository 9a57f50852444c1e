// y = x W^T + bias. Each row of W is decoded once; the innermost loop runs over tokens, so that the
// sum of each output value keeps the order of the columns however many tokens there are.
#include <vector>

#include "kernels/check_args.h"
#include "kernels/ref/matrix.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn::ref {

void RefKernels::Linear(const LinearArgs& args, Stream&) {
  CheckArgs(args);
  const auto& weight = static_cast<const RefMatrix&>(*args.weight);
  const std::int64_t tokens = args.tokens, n = weight.rows(), k = weight.cols();
  if (tokens == 0) return;
  const auto* x = args.x.As<float>();
  const auto* bias = args.bias.As<float>();
  auto* out = args.out.As<float>();

  std::vector<float> columns(static_cast<std::size_t>(k * tokens));  // x transposed: [K, T]
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t c = 0; c < k; ++c) columns[c * tokens + t] = x[t * k + c];
  }
  std::vector<float> row(static_cast<std::size_t>(k));
  std::vector<double> sums(static_cast<std::size_t>(tokens));
  for (std::int64_t r = 0; r < n; ++r) {
    weight.Row(r, row.data());
    sums.assign(sums.size(), bias == nullptr ? 0.0 : bias[r]);
    for (std::int64_t c = 0; c < k; ++c) {
      const double w = row[c];
      const float* column = columns.data() + c * tokens;
      for (std::int64_t t = 0; t < tokens; ++t) sums[t] += w * column[t];
    }
    for (std::int64_t t = 0; t < tokens; ++t) out[t * n + r] = static_cast<float>(sums[t]);
  }
}

}  // namespace metattn::ref
