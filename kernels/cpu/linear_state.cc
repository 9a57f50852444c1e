// Features of keys, their sums, z; see linear_state.h.
#include "kernels/cpu/linear_state.h"

#include "kernels/cpu/feature_map.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

constexpr int kPartColumns = 32;  // a part of a state has at least these

// Turns sums of blocks into z after each block, for all paths.
void RunZ(const KeyStore& store) {
  for (int p = 0; p < store.plan.path_count; ++p) {
    const StatePath& path = store.plan.paths[p];
    for (int i = 0; i < path.taken; ++i) {
      for (int h = 0; h < store.layer.heads; ++h) {
        const float* before = store.Z(path, h, i);
        float* z = store.Sums(path.first_key + i, h);
        for (int f = 0; f < store.layer.features; ++f) z[f] = before[f] + z[f];
      }
    }
  }
}

#if defined(__AVX512BF16__)
// phi [f, 64] rounded to bf16, zero outside the keys. (V of those tokens is no NaN: only whole
// blocks are added.)
void Narrow(const float* phi, int features, std::uint64_t keys, std::uint16_t* to) {
  for (int f = 0; f < features; ++f, phi += kBlockTokens, to += kBlockTokens) {
    for (int t = 0; t < kBlockTokens; t += 2 * kLanes) {
      const F32v low = Keep(Load(phi + t), keys >> t, Zero());
      const F32v high = Keep(Load(phi + t + kLanes), keys >> (t + kLanes), Zero());
      _mm512_storeu_si512(to + t, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
  }
}
#endif

// Features of one block and head to `phi`, sums to the store; `unpacked` has room for W.
void MakeKey(const KeyStore& store, int at, int head, float* unpacked, float* phi) {
  const Layer& layer = store.layer;
  const KeyBlock& key = store.plan.keys[at];
  const std::uint32_t* page = layer.Page(key, head);
  if (layer.shape.map == FeatureMap::kHedgehog) {
    const auto* w = layer.shape.w_k.As<std::uint16_t>() + std::int64_t{head} * layer.d * layer.d;
    if (!layer.bf16) UnpackRows(w, layer.d, unpacked);
#if defined(__AVX512BF16__)
    if (layer.bf16) {  // W and K are bf16 as they lie: nothing is rounded
      TileProduct({.a = w,
                   .a_stride = layer.d,
                   .b = page,
                   .b_stride = kBlockTokens,
                   .c = phi,
                   .c_stride = kBlockTokens,
                   .rows = layer.d,
                   .columns = kBlockTokens,
                   .depth = layer.d,
                   .add = false});
    }
#endif
  }
  KeyFeatures({layer.shape.map, page, layer.d, key.first, key.end, layer.bf16 ? nullptr : unpacked},
              phi, store.Sums(at, head));
#if defined(__AVX512BF16__)
  std::uint16_t* narrow = store.Narrow(at, head);
  if (narrow != nullptr) Narrow(phi, layer.features, KeyBits(key.first, key.end), narrow);
#endif
}

}  // namespace

void MakeKeys(const KeyStore& store, OpContext& context) {
  const Layer& layer = store.layer;
  const std::int64_t weights = layer.bf16 ? 0 : std::int64_t{layer.d} * layer.padded;
  const auto bytes = static_cast<std::size_t>((weights + layer.PhiFloats()) * 4);
  const std::int64_t keys = store.plan.key_count;
  context.pool.ParallelFor(
      keys * layer.heads, 1, [&](std::int64_t first, std::int64_t last, int worker) {
        const TileScope tiles(layer.bf16);
        auto* unpacked = reinterpret_cast<float*>(context.scratch.Worker(worker, bytes));
        for (std::int64_t unit = first; unit < last; ++unit) {
          const int head = static_cast<int>(unit / keys), at = static_cast<int>(unit % keys);
          float* phi = store.Phi(at, head);
          if (phi == nullptr) phi = unpacked + weights;
          MakeKey(store, at, head, unpacked, phi);
        }
      });
  RunZ(store);
}

float Weight(const KeyStore& store, const Place& place, int head, const float* phi_q) {
  const Layer& layer = store.layer;
  const float weight = Dot(phi_q, store.Z(*place.path, head, place.taken), layer.features);
  if (place.first_key >= place.end_key) return weight;
  const float* phi = store.Phi(place.tail, head);
  const std::uint64_t bits = KeyBits(place.first_key, place.end_key);
  F32v sum = Zero();
  for (int v = 0; v < kBlockTokens; v += kLanes) {
    F32v similarity = Zero();
    for (int f = 0; f < layer.features; ++f) {
      similarity = Fma(Set(phi_q[f]), Load(phi + f * kBlockTokens + v), similarity);
    }
    sum = Add(sum, Keep(similarity, bits >> v, Zero()));
  }
  return weight + ReduceAdd(sum);
}

int StateParts(const Layer& layer, std::int64_t shards, int threads) {
  int parts = 1;
  while (parts * 2 * kPartColumns <= layer.padded && shards * parts % threads != 0 &&
         shards * parts < 4 * std::int64_t{threads}) {
    parts *= 2;
  }
  return parts;
}

void CopyZ(const KeyStore& store, const StatePath& path, int head, int taken) {
  float* z = store.layer.State(path, head) + store.layer.features * store.layer.d;
  const float* from = store.Z(path, head, taken);
  for (int f = 0; f < store.layer.features; ++f) z[f] = from[f];
}

}  // namespace metattn::cpu::METATTN_ISA
