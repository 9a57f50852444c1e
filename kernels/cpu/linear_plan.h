// Which blocks of keys an op of linear attention adds to which states, and where its rows stand
// among them.
//
// Pure integer arithmetic on the step's row descriptions, compiled once for all instruction sets.
// Ownership: a plan points into memory of the calling thread that the next plan on that thread
// reuses. Thread safety: read by many, made by one. Errors: none. Cost: linear in the rows of the
// step and the blocks added.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace metattn::cpu {

// Keys [first, end) of one block of a sequence, counted within the block; none if first >= end.
struct KeyBlock {
  std::int32_t sequence, block;
  std::int32_t first, end;
  std::int32_t tail;  // rows read a part of it beside the state: its index among such blocks; or -1
};

// A sequence's way through the op: its state holds `held` blocks and takes the `taken` blocks from
// keys[first_key] on, one by one. A block of which rows read only a part may follow them.
// The rows of a path stand in taken + 1 groups, by the blocks that the state holds then.
struct StatePath {
  std::int32_t sequence;
  std::int32_t held, first_key, taken;
  std::int32_t first_group = 0;
  std::int32_t first_copy = 0;  // of taken + 1 copies of the state, if taken > 0
};

struct LinearPlan {
  const KeyBlock* keys = nullptr;
  const StatePath* paths = nullptr;        // sequences that have something to do, in order
  const std::int32_t* path_of = nullptr;   // [sequences] index of a sequence's path
  const std::int32_t* eligible = nullptr;  // rows with something to decide, ascending
  const std::int32_t* listed =
      nullptr;  // [H, paths + 1] where a path's rows begin in the work list
  std::int32_t key_count = 0, path_count = 0, eligible_count = 0, tail_count = 0;
  std::int32_t group_count = 0, copy_count = 0;
  const std::int32_t* path_of_group = nullptr;
};

// How far a series of plans has come: all of the sequences before `sequence`, `taken` blocks of it.
struct AbsorbCursor {
  std::int32_t sequence = 0, taken = 0;
};

// From state_end to the last whole block before the first row's linear_end, at most `limit` blocks
// from the cursor on, which moves past them; no paths when nothing is left. Sequences without such
// blocks are left out.
LinearPlan PlanAbsorb(const AttentionRows& rows, std::int32_t limit, AbsorbCursor* cursor);
// From there through all rows of every sequence. Without a list, `listed` stays null.
LinearPlan PlanRows(const AttentionRows& rows, const WorkList* list, int heads);

}  // namespace metattn::cpu
