// LinearOdds and FarLinear as work that other work may run beside: made (which advances states and
// makes features of keys), then units for any thread in any order, then finished.
//
// Ownership: a job borrows its arguments and holds the linear ops' shared scratch; one at a time
// per OpContext. Thread safety: Run from the pool's threads, the rest from the calling one. No
// errors. Included only by sources compiled with -DMETATTN_ISA. Cost: see linear_attention.cc.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear_plan.h"
#include "kernels/cpu/linear_state.h"
#include "kernels/cpu/op_table.h"
#include "kernels/kernels.h"

namespace metattn::cpu::METATTN_ISA {

// Until Finish lse_far lacks what comes from the near partial, which may be made meanwhile.
// Bodies: linear_odds.cc.
class OddsJob {
 public:
  OddsJob(const LinearOddsArgs& args, OpContext& context);
  OddsJob(const OddsJob&) = delete;
  OddsJob& operator=(const OddsJob&) = delete;

  std::int64_t units() const { return units_; }
  void Run(std::int64_t unit, int worker) const;
  void Finish() const;

 private:
  const LinearOddsArgs& args_;
  OpContext& context_;
  const Layer layer_;
  const LinearPlan plan_;
  const KeyStore store_;
  std::int64_t units_ = 0;
};

// Per listed row and query head: o = keep o + add (phi(q) S).
struct Factors {
  float* keep = nullptr;  // [H, capacity, g]
  float* add = nullptr;
  std::int64_t capacity = 0;

  std::int64_t At(const Layer& layer, int head, int entry) const {
    return (head * capacity + entry) * layer.group;
  }
};

// Bodies: linear_attention.cc.
class FarLinearJob {
 public:
  FarLinearJob(const FarLinearArgs& args, OpContext& context);
  FarLinearJob(const FarLinearJob&) = delete;
  FarLinearJob& operator=(const FarLinearJob&) = delete;

  std::int64_t units() const { return units_; }
  void Run(std::int64_t unit, int worker) const;
  void Finish() const;

 private:
  friend class FarUnit;

  float* Copy(const StatePath& path, int taken, int head) const;
  void AdvanceStates() const;
  void MergeWeights(int head, int entry) const;

  const FarLinearArgs& args_;
  OpContext& context_;
  const Layer layer_;
  const LinearPlan plan_;
  const std::int64_t entries_;  // of the longest list
  float* const memory_;
  const KeyStore store_;
  float* copies_ = nullptr;  // [copies, H, f, D]: states before and after blocks that a path takes
  Factors factors_;
  int parts_ = 1;  // of the columns of rows' values; with one a unit makes its rows' factors itself
  std::int64_t units_ = 0;
};

}  // namespace metattn::cpu::METATTN_ISA
