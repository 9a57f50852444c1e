#include "rpc/bring_up.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/shadow_rows.h"
#include "parallel/bootstrap.h"
#include "parallel/topology.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace metattn {

absl::StatusOr<std::unique_ptr<Communicator>> JoinWorld(const ModelOptions& options) {
  CommOptions comm;
  comm.deadline_s = options.collective_timeout_s;
  comm.ordered_sum = options.deterministic;
  comm.spin = !LooksOversubscribed(options.threads);
  return MakeWorld(comm);
}

absl::StatusOr<Runtime> Load(const ModelOptions& options, const WorkerLimits& limits,
                             Communicator& comm) {
  Runtime runtime;
  runtime.comm = &comm;
  auto checkpoint = Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return checkpoint.status();
  runtime.checkpoint = *std::move(checkpoint);
  auto config = ModelConfig::FromCheckpoint(*runtime.checkpoint);
  if (!config.ok()) return config.status();
  runtime.config = *std::move(config);
  auto tokenizer = Tokenizer::FromCheckpoint(*runtime.checkpoint);
  if (!tokenizer.ok()) return tokenizer.status();
  runtime.tokenizer = *std::move(tokenizer);
  auto worker = Worker::Create(*runtime.checkpoint, runtime.config, options, limits, comm);
  if (!worker.ok()) return worker.status();
  runtime.worker = *std::move(worker);
  return runtime;
}

absl::StatusOr<WorkerLimits> LimitsForServing(const EngineOptions& options,
                                              const ModelOptions& model) {
  auto checkpoint = Checkpoint::Open(model.model);
  if (!checkpoint.ok()) return checkpoint.status();
  auto config = ModelConfig::FromCheckpoint(**checkpoint);
  if (!config.ok()) return config.status();
  if (options.max_model_len > config->max_positions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--max-model-len: %d is more than the model's context of %d tokens",
                        options.max_model_len, config->max_positions));
  }
  WorkerLimits limits;
  limits.max_batch_tokens = options.max_num_batched_tokens;
  limits.max_sequences = std::min(options.max_num_seqs, options.max_num_batched_tokens);
  limits.max_logit_rows = limits.max_sequences;
  limits.state_snapshots = options.prefix_reuse ? options.state_snapshots : 0;
  limits.max_context = options.max_model_len;
  limits.kv_cache_bytes = options.kv_cache_bytes;
  if (options.shadow_rate > 0) limits.max_shadow_rows = kMaxShadowRows;
  const int context = options.max_model_len > 0 ? options.max_model_len : config->max_positions;
  limits.min_blocks = (context + kBlockTokens - 1) / kBlockTokens;  // one sequence must fit
  return limits;
}

absl::StatusOr<ServedModel> Describe(const Runtime& runtime, const EngineOptions& options,
                                     Engine* engine) {
  ServedModel served;
  served.name = options.served_model_name.empty() ? runtime.config.name : options.served_model_name;
  served.config = runtime.config;
  served.tokenizer = runtime.tokenizer.get();
  served.engine = engine;
  served.max_context = engine->max_context();
  served.ranks = runtime.comm->size();
  served.routing = [engine] { return engine->Routing().policy; };
  served.controller = runtime.worker->controller();
  auto chosen = ChatTemplate::Choose(*runtime.tokenizer, options.chat_template);
  if (!chosen.ok()) {
    served.chat_error = std::string(chosen.status().message());
    return served;
  }
  served.chat_template = std::string(chosen->name());
  served.apply_chat = [chat = *std::move(chosen),
                       tokenizer = runtime.tokenizer.get()](std::span<const ChatMessage> messages) {
    return chat.Apply(*tokenizer, messages);
  };
  return served;
}

void StartLogging(int rank, int ranks) {
  auto logger = spdlog::stderr_logger_mt("metattn");
  const std::string who = ranks > 1 ? absl::StrCat(" [rank ", rank, "]") : "";
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %^%l%$" + who + " %v");
  logger->flush_on(spdlog::level::trace);
  const char* level = std::getenv("METATTN_LOG_LEVEL");
  logger->set_level(level == nullptr ? spdlog::level::info : spdlog::level::from_str(level));
  spdlog::set_default_logger(std::move(logger));
}

int Conclude(const absl::Status& status, Communicator* comm) {
  if (status.ok()) return EXIT_SUCCESS;
  spdlog::error("{}", std::string(status.message()));
  if (comm != nullptr && comm->size() > 1) {
    alarm(5);  // SIGALRM kills, should ending hang
    EndWorld(EXIT_FAILURE);
  }
  return EXIT_FAILURE;
}

}  // namespace metattn
