// A softmax over a growing set of positions as a partial triple in double, for the reference
// attention: add positions, merge triples. Not for other backends. No errors, no threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "kernels/types.h"

namespace metattn::ref {

struct Triple {
  explicit Triple(int head_dim) : o(static_cast<std::size_t>(head_dim)) {}

  // Brings the triple to a maximum of at least `to`, which must be a number.
  void Rescale(double to) {
    if (to <= m) return;
    const double factor = std::exp(m - to);  // 0 for the empty triple
    for (double& value : o) value *= factor;
    l *= factor;
    m = to;
  }

  // One position. The maximum is kept as the f32 it is stored as, so that (o, m, l) stay
  // consistent.
  void Add(double score, const std::uint16_t* v) {
    Rescale(static_cast<float>(score));
    const double p = std::exp(score - m);
    l += p;
    for (std::size_t i = 0; i < o.size(); ++i) o[i] += p * Bf16ToF32(v[i]);
  }

  void Merge(const Triple& other) {
    if (other.l == 0) return;
    Rescale(other.m);
    const double factor = std::exp(other.m - m);
    l += other.l * factor;
    for (std::size_t i = 0; i < o.size(); ++i) o[i] += other.o[i] * factor;
  }

  double m = -std::numeric_limits<double>::infinity();
  double l = 0;
  std::vector<double> o;
};

inline double Score(const float* q, const std::uint16_t* k, int head_dim, float scale) {
  double dot = 0;
  for (int i = 0; i < head_dim; ++i) dot += double{q[i]} * Bf16ToF32(k[i]);
  return dot * scale;
}

// Row `index` of a Partial, index = row * heads + head.
inline Triple LoadTriple(const float* o, const float* m, const float* l, int head_dim) {
  Triple triple(head_dim);
  triple.o.assign(o, o + head_dim);
  triple.m = *m;
  triple.l = *l;
  return triple;
}

inline void StoreTriple(const Triple& triple, float* o, float* m, float* l) {
  for (std::size_t i = 0; i < triple.o.size(); ++i) o[i] = static_cast<float>(triple.o[i]);
  *m = static_cast<float>(triple.m);
  *l = static_cast<float>(triple.l);
}

}  // namespace metattn::ref
