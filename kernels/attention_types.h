// What the attention ops share: rows of a step, pages, work lists, partial triples.
//
// Plain views of device memory; whoever fills them owns the buffers. Notation as in kernels.h.
#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/types.h"

namespace metattn {

// Pages of one layer on one rank. Page (block b, KV head h) starts at base + (b * block_stride + h)
// * PageBytes(d).
struct PageTable {
  View base;
  std::int64_t block_stride = 0;  // pages from one block to the next (layers * H)
  int heads = 0;                  // H
  int head_dim = 0;               // d
};

// The rows of a step as attention sees them. Rows of one sequence are consecutive and in position
// order.
struct AttentionRows {
  std::int64_t tokens = 0;  // T
  int sequences = 0;        // S
  View position;            // [T] i32
  View sequence;            // [T] i32: index into the step's sequences
  View row_begin;        // [S + 1] i32: rows of sequence s are row_begin[s] .. row_begin[s + 1] - 1
  View near_begin;       // [T] i32: the near window is [max(near_begin, sinks), position]
  View far_end;          // [T] i32: the far span is [sinks, far_end), perhaps empty
  View table_begin;      // [S + 1] i32: block ids of sequence s lie at blocks[table_begin[s]..]
  View blocks;           // i32
  int sinks = 0;         // s: positions 0 .. s-1 belong to every near partial
  View linear_end;       // [T] i32: linear attention reads [linear_begin, linear_end)
  int linear_begin = 0;  // the sinks, or 0 when linear attention reads every position
  bool linear_all = false;  // it does: then full, linear and local differ in every row
  View state_slot;          // [S] i32: where the linear state of a sequence lives
  View state_end;  // [S] i32: whole blocks of tokens that it holds when the step begins, in
                   // tokens; 0: nothing, whatever its memory says

  // A row with something to decide, given its far_end; the mechanisms of others are all P0.
  bool Eligible(std::int32_t row_far_end) const { return linear_all || row_far_end > sinks; }
};

// Rows of each KV head that one mechanism must serve, in ascending row order, without gaps.
struct WorkList {
  View rows;                  // [H, capacity] i32
  View counts;                // [H] i32
  std::int64_t capacity = 0;  // >= T
};

// Partial triple of a softmax over a subset of positions: m = max score, l = sum exp(score - m),
// o = sum exp(score - m) v. Empty: m = -inf, l = 0, o = 0. Two merge by rescaling to the larger m.
struct Partial {
  View o;  // [T, H*g, d] f32
  View m;  // [T, H*g] f32
  View l;  // [T, H*g] f32
};

}  // namespace metattn
