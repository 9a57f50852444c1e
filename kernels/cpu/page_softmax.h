// The running softmax of one query over the pages of a span, on f32 vectors.
//
// Borrows everything for the call. Thread safe. No errors. Cost: about 20 instructions per vector
// of scores, and the query's o once where the maximum grows. Included only by sources compiled with
// -DMETATTN_ISA.
#pragma once

#include <cstdint>

#include "kernels/cpu/page_products.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

struct QuerySums {
  float* s;  // [64] scores of the page, then exp(score - m)
  float* o;  // [D]
  float* l;  // [kLanes] lane sums of exp(score - m)
  float* t;  // [kLanes] lane sums of exp(score - m) (score - m), or null
  float* m;  // largest score
};

// Turns the scores of a page into exp(score - m) with the new maximum and rescales the sums. Token
// groups outside [keys.first, keys.end) were not computed and are not read later; `bits`, the
// tokens that the query reads, has one among the others.
void SoftmaxPage(std::uint64_t bits, const PagePart& keys, const QuerySums& sums);

}  // namespace metattn::cpu::METATTN_ISA
