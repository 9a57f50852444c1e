// From flags to a rank that can run: world, checkpoint, tokenizer, worker. Shared by the commands
// that run a model.
//
// Load is collective: every rank calls it with the same options. What a Runtime owns goes in
// reverse order, the world last. Errors are the reader's own and name file, tensor or flag.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "engine/model/tokenizer.h"
#include "engine/options.h"
#include "engine/worker.h"
#include "parallel/communicator.h"
#include "rpc/served_model.h"

namespace metattn {

struct Runtime {
  Communicator* comm = nullptr;
  std::unique_ptr<Checkpoint> checkpoint;
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Worker> worker;
  bool root() const { return comm->rank() == 0; }
};

// One rank, or what mpirun started.
absl::StatusOr<std::unique_ptr<Communicator>> JoinWorld(const ModelOptions& options);
absl::StatusOr<Runtime> Load(const ModelOptions& options, const WorkerLimits& limits,
                             Communicator& comm);
// Checks --max-model-len against the model, before memory is taken.
absl::StatusOr<WorkerLimits> LimitsForServing(const EngineOptions& options,
                                              const ModelOptions& model);
absl::StatusOr<ServedModel> Describe(const Runtime& runtime, const EngineOptions& options,
                                     Engine* engine);

// Logs to standard error: level from METATTN_LOG_LEVEL (info), every line with the rank when there
// are several.
void StartLogging(int rank, int ranks);

// The command's exit code for `status`: 0 when OK. Otherwise logs it and, when there are other
// ranks, ends them too (they may wait for this one for ever).
int Conclude(const absl::Status& status, Communicator* comm);

}  // namespace metattn
