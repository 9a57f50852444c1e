// The flat message that rank 0 broadcasts for one forward pass, and the record every rank returns.
//
// A plan is self-contained: it carries the block table of each of its sequences, so workers keep no
// request state. Rows of one sequence are consecutive, in position order; positions are implied
// (start + index). Encode/Decode are the wire form (same-endian, versioned); Decode checks every
// count and index, so that a damaged message is an error, not a crash. Pure data, no threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/route_policy.h"
#include "kernels/types.h"

namespace metattn {

enum class StepKind : std::uint32_t { kForward = 1, kStop = 2 };

struct StepSequence {
  std::uint64_t id = 0;              // unique per sequence while it lives
  std::int32_t start = 0;            // position of the first row of this step
  std::int32_t rows = 0;             // tokens of this step
  std::vector<std::int32_t> blocks;  // block ids covering positions 0 .. start + rows - 1
  // Where the sequence's linear state lives, and the position whose row left it there; -1: nobody
  // did, the state is built from the pages. Ignored without a controller.
  std::int32_t state_slot = 0;
  std::int32_t state_position = -1;
  // Snapshots (state_snapshots.h), -1: none. Before anything of the step, in the order of the
  // sequences, the state is copied from slot `state_load`; after all of it to slot `state_save`, in
  // that order too.
  std::int32_t state_load = -1;
  std::int32_t state_save = -1;
};

struct StepPlan {
  StepKind kind = StepKind::kForward;
  std::uint64_t step = 0;
  std::vector<StepSequence> sequences;
  std::vector<std::int32_t> tokens;       // [T] token ids, sequence after sequence
  std::vector<RoutePolicy> policy;        // [T]
  std::vector<std::int32_t> logit_rows;   // rows whose logits rank 0 needs, ascending
  std::vector<std::int32_t> best_rows;    // rows whose likeliest token is enough, ascending
  std::vector<std::int32_t> shadow_rows;  // rows whose full output is computed too, to compare

  std::vector<std::byte> Encode() const;
  static absl::StatusOr<StepPlan> Decode(std::span<const std::byte> message);
};

// One per rank and step, beside the counts of routing_counts.h; sent as bytes.
struct StepResult {
  std::uint64_t step = 0;
  double step_seconds = 0;
  double attention_seconds = 0;   // append, near, feature maps, far, merge
  double controller_seconds = 0;  // the meta-controller's projection and decisions
  double wait_seconds = 0;        // waiting for other ranks in collectives
  double transfer_seconds = 0;
  std::int64_t helped_rows = 0;  // (row, KV head, layer) whose far pages another rank has read
};

}  // namespace metattn
