// One rank: its Kernels, Transformer and Communicator put together, and the loop that ranks other
// than 0 run.
//
// Every rank Creates with the same options (collective). Rank 0 then calls Step for each plan and
// Stop at the end; the others call Serve, which returns after Stop or on an error. One caller.
// After an error nothing more can run: the process should end (a lost peer ends it anyway,
// parallel/communicator.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "engine/model/controller_file.h"
#include "engine/model/routing_counts.h"
#include "engine/model/step_plan.h"
#include "engine/model/transformer.h"
#include "engine/options.h"
#include "parallel/communicator.h"

namespace metattn {

struct WorkerLimits {
  int max_batch_tokens = 512;
  int max_sequences = 64;
  int max_logit_rows = 64;
  int state_snapshots = 0;  // see TransformerOptions
  int max_context = 0;      // positions; 0: the model's own
  std::int64_t kv_cache_bytes =
      0;  // per rank; 0: nine tenths of a GPU's budget behind weights and scratch, or a quarter of
          // what is free on the host, shared by its ranks
  std::int64_t min_blocks = 1;  // fewer is an error that says how much memory is missing
  std::int64_t max_blocks = 0;  // no more than this, however much memory there is; 0: no limit
  int max_shadow_rows = 0;      // of a step; 0: no quality watch
  double perturb = 0;           // see TransformerOptions
  std::uint64_t perturb_seed = 1;
};

struct StepOutput {
  std::vector<float> logits;       // [plan.logit_rows, V]
  std::vector<std::int32_t> best;  // token ids, [plan.best_rows]
  std::vector<StepResult> per_rank;
  StepRouting routing;                      // sums over the ranks
  std::vector<RoutingCounts> rank_routing;  // totals of each rank
};

class Worker {
 public:
  static absl::StatusOr<std::unique_ptr<Worker>> Create(const Checkpoint& checkpoint,
                                                        const ModelConfig& config,
                                                        const ModelOptions& options,
                                                        const WorkerLimits& limits,
                                                        Communicator& comm);
  virtual ~Worker() = default;

  virtual absl::StatusOr<StepOutput> Step(const StepPlan& plan) = 0;  // rank 0
  virtual absl::Status Stop() = 0;                                    // rank 0
  virtual absl::Status Serve() = 0;                                   // other ranks

  virtual int rank() const = 0;
  virtual int ranks() const = 0;
  virtual int threads() const = 0;
  virtual std::string isa() const = 0;
  virtual int window() const = 0;                        // of the near partial, tokens
  virtual int sinks() const = 0;                         // tokens
  virtual const ControllerFile* controller() const = 0;  // null: routes are forced
  virtual std::int64_t blocks() const = 0;        // capacity: the minimum over ranks that own heads
  virtual std::int64_t weight_bytes() const = 0;  // sum over ranks
  virtual const std::vector<std::string>& descriptions()
      const = 0;  // rank 0: one line per rank, host .. memory
};

}  // namespace metattn
