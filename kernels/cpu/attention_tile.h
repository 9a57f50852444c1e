// Runs an AttentionPlan: softmax partials of tiles of query rows over their pages.
//
// Statistics (NearArgs.stats): the mean score is kept as t = sum p (score - m) beside l until all
// spans are merged; the sinks' log-sum-exp is taken from their columns
// of the scores. Rows that are not eligible are left out, tiles without eligible rows cost nothing.
//
// Borrows everything for the call. One caller per OpContext. No errors. Cost: each page is read
// once per tile and unit; 4 d flops per (query vector, position). Worker scratch: about 1 KB per
// query vector of a tile.
#pragma once

#include <cstdint>

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/vec.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {

struct AttentionTask {
  const AttentionRows& rows;
  const PageTable& pages;
  int group;
  float scale;
  const float* q;  // [T, H*g, d]
  Partial partial;
  float* stats;  // [T, H*g, 2] as NearArgs.stats, or null; only where `fresh`
  bool fresh;    // start from empty partials, not from what lies in `partial`
  bool bf16;     // tiles with enough queries take products of bf16 (attention_bf16.h)
};

// Bits of the tokens of a page of the sequence that lie in [begin, end).
METATTN_INLINE std::uint64_t TokensBetween(int page, int begin, int end) {
  const int start = page * kBlockTokens;
  const int from = Larger(begin - start, 0), to = Smaller(end - start, kBlockTokens);
  if (from >= to) return 0;
  return (~std::uint64_t{0} >> (kBlockTokens - (to - from))) << from;
}
METATTN_INLINE std::uint64_t TokensRead(const RowRange& range, int page) {
  return TokensBetween(page, 0, range.sinks_end) | TokensBetween(page, range.begin, range.end);
}

// Positions of [0, sinks) that a page, or a span, with `tokens` of them holds.
METATTN_INLINE int SinksIn(int sinks, int index, int tokens) {
  return Larger(0, Smaller(sinks - index * tokens, tokens));
}

// The units of a plan, for any thread in any order; the last of a shared tile merges it. Holds the
// op's shared scratch.
class AttentionJob {
 public:
  AttentionJob(const AttentionPlan& plan, const AttentionTask& task, OpContext& context);

  std::int64_t units() const { return plan_.unit_count; }
  void Run(std::int64_t unit, int worker) const;

 private:
  const AttentionPlan plan_;
  const AttentionTask task_;
  OpContext& context_;
  std::int32_t* units_left_ = nullptr;  // [tiles]
  float* partials_ = nullptr;           // of tiles that are shared
};

// attention_near.cc, attention_far.cc
AttentionJob NearJob(const NearArgs& args, OpContext& context);
AttentionJob FarFullJob(const FarFullArgs& args, OpContext& context);

}  // namespace metattn::cpu::METATTN_ISA
