// The cpu backend's ops of one instruction-set level, as a table of function pointers.
//
// Ownership: a table is static. Thread safety: functions as Kernels: one caller at a time per
// OpContext. Errors: shapes are CHECKed by the caller (cpu_kernels.cc); functions cannot fail.
// Cost: as the ops of kernels/kernels.h. Bodies lie in kernels/cpu/*.cc, compiled once per level;
// ops.h declares them inside the level's namespace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/kernels.h"

namespace metattn::cpu {

class PackedMatrix;  // packed_matrix.h

// What a body may use beside its arguments.
struct OpContext {
  ThreadPool& pool;
  Scratch& scratch;
  bool deterministic = false;
};

struct OpTable {
  std::string_view name;
  int panel_rows = 0;  // output rows that the level wants interleaved (pack.h)
  std::int64_t (*page_bytes)(int head_dim);
  void (*embed)(const PackedMatrix& table, const EmbedArgs& args, OpContext& context);
  void (*norm)(const NormArgs& args, OpContext& context);
  void (*linear)(const PackedMatrix& weight, const LinearArgs& args, OpContext& context);
  void (*rope_append)(const RopeAppendArgs& args, OpContext& context);
  void (*forced_route)(const ForcedRouteArgs& args, OpContext& context);
  void (*compact)(const CompactArgs& args, OpContext& context);
  void (*near)(const NearArgs& args, OpContext& context);
  void (*far_full)(const FarFullArgs& args, OpContext& context);
  void (*linear_absorb)(const LinearAbsorbArgs& args, OpContext& context);
  void (*linear_odds)(const LinearOddsArgs& args, OpContext& context);
  void (*far_linear)(const FarLinearArgs& args, OpContext& context);
  void (*near_and_odds)(const NearArgs& near, const LinearOddsArgs& odds, OpContext& context);
  void (*far)(const FarFullArgs& full, const FarLinearArgs& linear, OpContext& context);
  void (*control)(const ControlArgs& args, OpContext& context);
  void (*mix)(const MixArgs& args, OpContext& context);
  void (*dispatch)(const DispatchArgs& args, OpContext& context);
  void (*normalize)(const NormalizeArgs& args, OpContext& context);
  void (*swiglu)(const SwiGluArgs& args, OpContext& context);
  void (*gather)(const GatherArgs& args, OpContext& context);
  void (*argmax)(const ArgMaxArgs& args, OpContext& context);
};

}  // namespace metattn::cpu
