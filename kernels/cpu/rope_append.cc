// Splits q, k, v; normalises and rotates q and k; stores k and v in the pages' layout (pages.h).
//
// A row is one piece of work; sixteen consecutive rows go to one thread, because they share the
// lines of K they are scattered to. Loops over pairs are plain: the compiler makes vectors of them.
#include <cstdint>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/vec.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kMaxHeadDim = 256;

// out = in / sqrt(mean(in^2) + eps) * weight. The sum has a fixed order: lanes, then across.
void NormHead(const float* in, const float* weight, int d, float eps, float* out) {
  F32v squares = Zero();
  for (int i = 0; i < d; i += kLanes) {
    const F32v x = LoadN(in + i, Smaller(kLanes, d - i));
    squares = Fma(x, x, squares);
  }
  const float mean = ReduceAdd(squares) / static_cast<float>(d);
  const float factor = 1.0f / __builtin_sqrtf(mean + eps);
  for (int i = 0; i < d; i += kLanes) {
    const int n = Smaller(kLanes, d - i);
    StoreN(out + i, Mul(Mul(LoadN(in + i, n), Set(factor)), LoadN(weight + i, n)), n);
  }
}

void RotateInterleaved(const float* __restrict in, const float* __restrict cos_sin, int pairs,
                       float* __restrict out) {
  for (int i = 0; i < pairs; ++i) {
    const float a = in[2 * i], b = in[2 * i + 1], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
    out[2 * i] = a * c - b * s;
    out[2 * i + 1] = a * s + b * c;
  }
}

void RotateHalves(const float* __restrict in, const float* __restrict cos_sin, int pairs,
                  float* __restrict out) {
  for (int i = 0; i < pairs; ++i) {
    const float a = in[i], b = in[i + pairs], c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
    out[i] = a * c - b * s;
    out[i + pairs] = a * s + b * c;
  }
}

// One head of q or k.
void PrepareHead(const RopeAppendArgs& args, const float* weight, const float* cos_sin,
                 const float* in, float* out) {
  const int d = args.pages.head_dim;
  float normed[kMaxHeadDim];
  if (weight != nullptr) {
    NormHead(in, weight, d, args.norm_eps, normed);
    in = normed;
  }
  if (args.interleaved) {
    RotateInterleaved(in, cos_sin, args.rotary_dim / 2, out);
  } else {
    RotateHalves(in, cos_sin, args.rotary_dim / 2, out);
  }
  for (int i = args.rotary_dim; i < d; ++i) out[i] = in[i];
}

// Stores one token's k and v; `k` and `v` have PaddedDim places, padding zero.
void StoreToken(std::uint32_t* page, int padded, int token, const float* k, const float* v) {
  std::uint16_t narrow[kMaxHeadDim];
  for (int i = 0; i < padded; i += kLanes) StoreBf16(narrow + i, Load(k + i));
  std::uint32_t* keys = page + token;
  for (int p = 0; p < padded / 2; ++p) {
    keys[p * kBlockTokens] = narrow[2 * p] | static_cast<std::uint32_t>(narrow[2 * p + 1]) << 16;
  }
  for (int i = 0; i < padded; i += kLanes) StoreBf16(narrow + i, Load(v + i));
  auto* values = reinterpret_cast<std::uint16_t*>(page + KeyWords(padded) + token / 2 * padded);
  for (int i = 0; i < padded; ++i) values[2 * i + token % 2] = narrow[i];
}

void AppendRow(const RopeAppendArgs& args, std::int64_t t) {
  const int d = args.pages.head_dim, padded = PaddedDim(d);
  const int heads = args.pages.heads, q_heads = heads * args.group;
  const std::int64_t position = args.rows.position.As<std::int32_t>()[t];
  const std::int32_t sequence = args.rows.sequence.As<std::int32_t>()[t];
  const float* qkv = args.qkv.As<float>() + t * (q_heads + 2 * heads) * d;
  const float* cos_sin = args.cos_sin.As<float>() + position * args.rotary_dim;
  float* q = args.q.As<float>() + t * q_heads * d;
  for (int h = 0; h < q_heads; ++h) {
    PrepareHead(args, args.q_norm.As<float>(), cos_sin, qkv + h * d, q + h * d);
  }
  const std::int64_t table = args.rows.table_begin.As<std::int32_t>()[sequence];
  const std::int64_t block = args.rows.blocks.As<std::int32_t>()[table + position / kBlockTokens];
  alignas(64) float k[kMaxHeadDim], v[kMaxHeadDim];
  for (int i = d; i < padded; ++i) k[i] = v[i] = 0.0f;
  for (int h = 0; h < heads; ++h) {
    PrepareHead(args, args.k_norm.As<float>(), cos_sin, qkv + (q_heads + h) * d, k);
    const float* from = qkv + (q_heads + heads + h) * d;
    for (int i = 0; i < d; ++i) v[i] = from[i];
    StoreToken(PageAt(args.pages, block, h), padded, static_cast<int>(position % kBlockTokens), k,
               v);
  }
}

}  // namespace

std::int64_t PageBytes(int head_dim) { return 2 * KeyWords(PaddedDim(head_dim)) * 4; }

void RopeAppend(const RopeAppendArgs& args, OpContext& context) {
  if (args.pages.heads == 0) return;
  context.pool.ParallelFor(args.rows.tokens, kGroupTokens,
                           [&](std::int64_t begin, std::int64_t end, int) {
                             for (std::int64_t t = begin; t < end; ++t) AppendRow(args, t);
                           });
}

}  // namespace metattn::cpu::METATTN_ISA
