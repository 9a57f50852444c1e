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

  // m and l of the g queries of a listed row and KV head.
  struct Sums {
    float* m;
    float* l;
  };

  float* Copy(const StatePath& path, int taken, int head) const;
  void AdvanceStates() const;
  void CutUnits();
  int ListedHead(std::int64_t i) const;
  Sums After(int head, int entry) const;

  const FarLinearArgs& args_;
  OpContext& context_;
  const Layer layer_;
  const LinearPlan plan_;
  const std::int64_t entries_;  // of the longest list
  float* const memory_;
  const KeyStore store_;
  float* copies_ = nullptr;  // [copies, H, f, D]: states before and after blocks that a path takes
  float* after_ = nullptr;   // [2, H, entries, g]: m and l as they are once rows have been merged
  int listed_heads_ = 0;     // KV heads with rows in the list
  std::int64_t whole_ = 0;   // units with all columns; after them those of a part
  int parts_ = 1;            // into which their columns are cut
  std::int64_t units_ = 0;
};

}  // namespace metattn::cpu::METATTN_ISA
