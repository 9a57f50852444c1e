// The forward pass of one rank: its slice of every layer, paged K/V of its heads, collectives in
// between.
//
// Owns weights, pages and scratch on its Kernels' device; borrows Kernels, Communicator and (during
// Create) Checkpoint. One caller. Every rank calls Forward with the same plan. Errors: a lost peer,
// device trouble; bad plans are rejected as INVALID_ARGUMENT before anything is computed. Cost: see
// engine/model/README.md.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "engine/model/controller_file.h"
#include "engine/model/decision_source.h"
#include "engine/model/helper_plan.h"
#include "engine/model/routing_counts.h"
#include "engine/model/step_plan.h"
#include "kernels/kernels.h"
#include "parallel/communicator.h"
#include "parallel/shard_planner.h"

namespace metattn {

struct TransformerOptions {
  int window = 256;            // w: positions a row reads at least, itself included
  int sinks = 4;               // s; both must be the controller's where there is one, which also
                               // says how windows begin and what linear attention reads
  int max_batch_tokens = 512;  // rows of one step at most
  int max_sequences = 64;      // sequences of one step at most
  int state_snapshots = 0;     // linear states kept beside those of the sequences
  int max_logit_rows = 64;     // rows of one step whose logits, or best token, are wanted, at most
  int max_context = 0;         // positions; 0: the model's own
  std::int64_t blocks = 0;     // K/V capacity in blocks of kBlockTokens
  const ControllerFile* controller = nullptr;  // null: routes are forced; only during Create
  DecisionSource* source = nullptr;      // decides instead of policies; outlives the transformer
  DecisionRecorder* recorder = nullptr;  // likewise; null: nothing is recorded
  int max_shadow_rows = 0;               // of a step; 0: no quality watch
  std::vector<HelperLink> helpers;       // who reads far pages for whom, the same on every rank
  Communicator* background = nullptr;    // a channel for copies of pages, where there are any
  double perturb =
      0;  // > 0: relative seeded noise on embeddings and all-reduce sums (to measure bounds)
  std::uint64_t perturb_seed = 1;
};

class Transformer {
 public:
  // slices: one per rank (PlanSlices); this rank takes its own.
  static absl::StatusOr<std::unique_ptr<Transformer>> Create(const Checkpoint& checkpoint,
                                                             const ModelConfig& config,
                                                             std::span<const Slice> slices,
                                                             const TransformerOptions& options,
                                                             Kernels& kernels, Communicator& comm);
  virtual ~Transformer() = default;

  // Runs the plan. On rank 0 `logits` receives [plan.logit_rows, V] f32 and `best` of each of
  // plan.best_rows the token of the largest logit (the lowest of equal ones; 0 where none is above
  // -inf); others may pass null. `routing` receives this rank's counts.
  struct Outputs {
    std::vector<float>* logits = nullptr;
    std::vector<std::int32_t>* best = nullptr;
    StepResult* result = nullptr;
    StepRouting* routing = nullptr;
  };
  [[nodiscard]] virtual absl::Status Forward(const StepPlan& plan, const Outputs& out) = 0;

  virtual std::int64_t weight_bytes() const = 0;  // on this rank
  virtual std::int64_t page_bytes() const = 0;    // all pages on this rank
};

// Bytes one rank needs, before anything is allocated: for inspect, capacity planning and error
// messages.
struct MemoryNeed {
  std::int64_t weights = 0;
  std::int64_t scratch = 0;
  std::int64_t per_block = 0;  // K/V of kBlockTokens tokens over the rank's layers and heads
};
absl::StatusOr<MemoryNeed> EstimateMemory(const Checkpoint& checkpoint, const ModelConfig& config,
                                          const Slice& slice, const TransformerOptions& options);

}  // namespace metattn
