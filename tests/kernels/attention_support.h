// A small world for attention tests: sequences with their K/V in pages of the backend under test
// and, beside it, as plain numbers; rows of a step over it; the softmax by its definition.
//
// Borrows the Rig. Not thread safe. The pages start as NaN, blocks lie scattered, the layer under
// test is the second of two, so that a wrong address shows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "tests/kernels/support.h"

namespace metattn::testing {

// Rows [start, start + rows) of one sequence.
struct SequenceRows {
  int start = 0;
  int rows = 0;
};

struct AttentionShape {
  int heads = 1;
  int group = 1;
  int head_dim = 64;
  int sinks = 4;
  int window = 256;
  bool exact = false;  // window_scope exact: near_begin = far_end = t - w + 1, else by blocks
  std::vector<SequenceRows> sequences;

  std::string Name() const;
};

// Host copies of what a step's rows are, beside the views.
struct StepRows {
  AttentionRows views;
  std::vector<std::int32_t> position, sequence, near_begin, far_end;
};

// What a softmax over some positions must give for one row and query head, and how far off it may
// be.
struct ExpectedPartial {
  double m = 0, l = 0, m_bound = 0, l_relative = 0;
  double mean = 0, mean_bound = 0;  // sum_j p_j score_j
  std::vector<double> o, o_bound;
};

class AttentionWorld {
 public:
  AttentionWorld(Rig& rig, const AttentionShape& shape, std::uint64_t seed);

  // Stores K and V of every position with RopeAppend (no rotation), in steps of odd sizes.
  void AppendAll();

  StepRows Rows() { return Rows(shape_.sequences); }
  StepRows Rows(const std::vector<SequenceRows>& sequences);
  PageTable pages() const { return pages_; }
  float scale() const { return scale_; }
  // q of given rows [T, H*g, d]: a function of (sequence, position) only.
  std::vector<float> Queries(const StepRows& rows) const;

  // Positions of the near partial or of the far span of a row.
  std::vector<int> NearPositions(const StepRows& rows, int row) const;
  std::vector<int> FarPositions(const StepRows& rows, int row) const;

  ExpectedPartial Expect(const float* q, int sequence, int head,
                         const std::vector<int>& positions) const;

  // [head, d] as RopeAppend gets them; they are stored as bf16.
  const float* KeyIn(int sequence, int position) const;
  const float* ValueIn(int sequence, int position) const;

 private:
  Rig& rig_;
  AttentionShape shape_;
  std::uint64_t seed_;
  float scale_;
  PageTable pages_;
  std::vector<std::int32_t> table_begin_, blocks_;
  std::vector<std::vector<float>> k_, v_;
};

// An empty Partial of T rows in NaN-filled memory.
Partial NewPartial(Rig& rig, std::int64_t tokens, int q_heads, int head_dim);

// All rows of every KV head.
WorkList EveryRow(Rig& rig, std::int64_t tokens, int heads);

struct HostPartial {
  std::vector<float> o, m, l;
};
HostPartial ReadPartial(Rig& rig, const Partial& partial, std::int64_t tokens, int q_heads,
                        int head_dim);

// Accumulates expectations in the order of a Partial and compares all at once.
struct PartialExpectation {
  std::vector<double> o, o_bound, m, m_bound, l, l_bound;
  void Add(const ExpectedPartial& expected);
  void Check(const HostPartial& actual, const std::string& what) const;
};

void ExpectSamePartial(const HostPartial& actual, const HostPartial& expected,
                       const std::string& what);

}  // namespace metattn::testing
