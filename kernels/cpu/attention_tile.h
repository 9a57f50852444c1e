// Runs an AttentionPlan: softmax partials of tiles of query rows over their pages.
//
// Borrows everything for the call. One caller per OpContext. No errors. Cost: each page is read
// once per tile and unit; 4 d flops per (query vector, position). Worker scratch: about 1 KB per
// query vector of a tile.
#pragma once

#include "kernels/cpu/attention_plan.h"
#include "kernels/cpu/op_table.h"
#include "kernels/kernels.h"

namespace metattn::cpu::METATTN_ISA {

struct AttentionTask {
  const AttentionRows& rows;
  const PageTable& pages;
  int group;
  float scale;
  const float* q;  // [T, H*g, d]
  Partial partial;
  bool fresh;  // start from empty partials, not from what lies in `partial`
};

void RunAttention(const AttentionPlan& plan, const AttentionTask& task, OpContext& context);

}  // namespace metattn::cpu::METATTN_ISA
