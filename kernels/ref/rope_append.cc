// Splits q, k, v; normalises and rotates q and k; stores k and v of every row in its page.
#include <cmath>
#include <vector>

#include "kernels/check_args.h"
#include "kernels/ref/pages.h"
#include "kernels/ref/ref_kernels.h"

namespace metattn::ref {
namespace {

// One head of q or k: RMSNorm when there is a weight, then RoPE with the row's (cos, sin) pairs.
void NormRotate(const RopeAppendArgs& args, const float* weight, const float* cos_sin,
                const float* in, float* out) {
  const int d = args.pages.head_dim;
  double factor = 1;
  if (weight != nullptr) {
    double squares = 0;
    for (int i = 0; i < d; ++i) squares += double{in[i]} * in[i];
    factor = 1.0 / std::sqrt(squares / d + args.norm_eps);
  }
  auto value = [&](int i) { return in[i] * factor * (weight == nullptr ? 1.0 : weight[i]); };
  const int half = args.rotary_dim / 2;
  for (int i = 0; i < half; ++i) {
    const int a = args.interleaved ? 2 * i : i;
    const int b = args.interleaved ? 2 * i + 1 : i + half;
    const double c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
    out[a] = static_cast<float>(value(a) * c - value(b) * s);
    out[b] = static_cast<float>(value(a) * s + value(b) * c);
  }
  for (int i = args.rotary_dim; i < d; ++i) out[i] = static_cast<float>(value(i));
}

}  // namespace

void RefKernels::RopeAppend(const RopeAppendArgs& args, Stream&) {
  CheckArgs(args);
  const int d = args.pages.head_dim, heads = args.pages.heads, q_heads = heads * args.group;
  const auto* position = args.rows.position.As<std::int32_t>();
  const auto* sequence = args.rows.sequence.As<std::int32_t>();
  std::vector<float> k(static_cast<std::size_t>(d));
  for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
    const float* qkv = args.qkv.As<float>() + t * (q_heads + 2 * heads) * d;
    const float* cos_sin = args.cos_sin.As<float>() + std::int64_t{position[t]} * args.rotary_dim;
    float* q = args.q.As<float>() + t * q_heads * d;
    for (int h = 0; h < q_heads; ++h) {
      NormRotate(args, args.q_norm.As<float>(), cos_sin, qkv + h * d, q + h * d);
    }
    for (int h = 0; h < heads; ++h) {
      NormRotate(args, args.k_norm.As<float>(), cos_sin, qkv + (q_heads + h) * d, k.data());
      const float* v = qkv + (q_heads + heads + h) * d;
      const Place place = Locate(args.rows, args.pages, sequence[t], h, position[t]);
      for (int i = 0; i < d; ++i) {
        place.k[i] = F32ToBf16(k[i]);
        place.v[i] = F32ToBf16(v[i]);
      }
    }
  }
}

}  // namespace metattn::ref
