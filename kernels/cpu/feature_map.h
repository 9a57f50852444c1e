// Feature maps of linear attention: phi of the keys of a page and of queries.
//
// Borrows everything; no errors; thread safe. Included only by sources compiled with -DMETATTN_ISA.
// Cost: 2 d^2 flops and 2 d exponentials per key or query (hedgehog), d exponentials (elu1).
// Results depend on the key or query alone.
#pragma once

#include <cstdint>

#include "kernels/cpu/vec.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {

// Keys [first, end) of a block as bits.
METATTN_INLINE std::uint64_t KeyBits(int first, int end) {
  return first >= end ? 0 : ~std::uint64_t{0} >> (kBlockTokens - end + first) << first;
}

// W of keys, [d, d] bf16 with a row per output, as f32 with rows of D, padding zero.
void UnpackRows(const std::uint16_t* w, int head_dim, float* out);
// W of queries in pairs of inputs (PackQueryMap), as f32 with a row of D outputs per input.
void UnpackPairs(const std::uint32_t* w, int head_dim, float* out);

// Keys [first, end) of a page.
struct KeySource {
  FeatureMap map;
  const std::uint32_t* page;
  int head_dim;
  int first, end;
  const float* weights;  // of UnpackRows; null: y = W k already stands where phi will; not for elu1
};

// phi [f, 64 tokens] (tokens outside are left arbitrary) and its sums [f] over the keys.
void KeyFeatures(const KeySource& keys, float* phi, float* sums);

struct QueryMap {
  FeatureMap map;
  int head_dim;
  const float* weights;  // of UnpackPairs; unused by elu1
  float* y;              // room for kQueryBlock * D
};

// phi of n <= kQueryBlock queries.
void QueryFeatures(const QueryMap& map, const float* const* q, int n, float* const* phi);

// Hedgehog's phi of one query straight from W in pairs, for d a multiple of kLanes; the bits of
// QueryFeatures.
void OneQueryFeatures(const std::uint32_t* w, const float* q, int head_dim, float* y, float* phi);

// softmax(y) and softmax(-y) of one vector of d; y is read up to D.
void SoftmaxPair(const float* y, int head_dim, float* phi);

}  // namespace metattn::cpu::METATTN_ISA
