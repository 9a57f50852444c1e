#include "tests/support/local_server.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/options.h"
#include "parallel/local_communicator.h"

namespace metattn::test {
namespace {

// Far beyond any answer's time, also under a sanitizer on a loaded machine.
constexpr std::chrono::seconds kPatience{120};

ModelOptions ModelOptionsOf(const LocalServerOptions& o) {
  ModelOptions model;
  model.model = o.model;
  model.device = o.device;
  model.isa = o.isa;
  model.threads = o.threads;
  model.window = o.window;
  model.sinks = o.sinks;
  model.deterministic = o.deterministic;
  return model;
}

WorkerLimits LimitsOf(const LocalServerOptions& o) {
  WorkerLimits limits;
  limits.max_batch_tokens = o.max_num_batched_tokens;
  limits.max_sequences = std::min(o.max_num_seqs, o.max_num_batched_tokens);
  limits.max_logit_rows = limits.max_sequences;
  limits.max_blocks = o.blocks;
  return limits;
}

}  // namespace

void Pending::Receive(const GenerationEvent& event) {
  std::size_t tokens = 0;
  {
    std::lock_guard lock(mutex_);
    answer_.tokens.insert(answer_.tokens.end(), event.tokens.begin(), event.tokens.end());
    answer_.text += event.text;
    tokens = answer_.tokens.size();
  }
  // Before the answer can be seen as done, so that what a hook does is over when Wait returns.
  if (hook_ && !event.tokens.empty()) hook_(tokens);
  if (event.finish == FinishReason::kNone) return;
  std::lock_guard lock(mutex_);
  answer_.last = event;
  changed_.notify_all();
}

bool Pending::done() const {
  std::lock_guard lock(mutex_);
  return answer_.last.finish != FinishReason::kNone;
}

Answer Pending::Wait() {
  std::unique_lock lock(mutex_);
  const auto ended = [this] { return answer_.last.finish != FinishReason::kNone; };
  if (!changed_.wait_for(lock, kPatience, ended)) {
    Answer late = answer_;
    late.last.status = absl::DeadlineExceededError("the answer did not end in time");
    return late;
  }
  return answer_;
}

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(const LocalServerOptions& options) {
  std::unique_ptr<LocalServer> server(new LocalServer(options));
  if (absl::Status s = server->Init(); !s.ok()) return s;
  return server;
}

absl::Status LocalServer::Init() {
  auto checkpoint = Checkpoint::Open(options_.model);
  if (!checkpoint.ok()) return checkpoint.status();
  checkpoint_ = *std::move(checkpoint);
  auto config = ModelConfig::FromCheckpoint(*checkpoint_);
  if (!config.ok()) return config.status();
  config_ = *std::move(config);
  auto tokenizer = Tokenizer::FromCheckpoint(*checkpoint_);
  if (!tokenizer.ok()) return tokenizer.status();
  tokenizer_ = *std::move(tokenizer);

  const ModelOptions model = ModelOptionsOf(options_);
  const WorkerLimits limits = LimitsOf(options_);
  comms_ = MakeLocalCommunicators(options_.ranks, {.ordered_sum = options_.deterministic});
  ends_.resize(static_cast<std::size_t>(options_.ranks));
  for (int r = 1; r < options_.ranks; ++r) {
    others_.emplace_back([this, r, model, limits] {
      auto worker = Worker::Create(*checkpoint_, config_, model, limits, *comms_[r]);
      ends_[r] = worker.ok() ? (*worker)->Serve() : worker.status();
    });
  }
  auto worker = Worker::Create(*checkpoint_, config_, model, limits, *comms_[0]);
  if (!worker.ok()) return worker.status();
  worker_ = *std::move(worker);

  EngineOptions engine;
  engine.max_num_seqs = options_.max_num_seqs;
  engine.max_num_batched_tokens = options_.max_num_batched_tokens;
  engine.prefix_reuse = options_.prefix_reuse;
  auto created = Engine::Create(engine, model, config_, *worker_, *tokenizer_, nullptr);
  if (!created.ok()) return created.status();
  engine_ = *std::move(created);
  return absl::OkStatus();
}

std::shared_ptr<Pending> LocalServer::Submit(GenerationRequest request, TokenHook hook) {
  auto pending = std::make_shared<Pending>(std::move(hook));
  const auto id = engine_->Submit(
      std::move(request), [pending](const GenerationEvent& event) { pending->Receive(event); });
  if (id.ok()) {
    pending->id = *id;
  } else {
    GenerationEvent refused;
    refused.finish = FinishReason::kError;
    refused.status = id.status();
    pending->Receive(refused);
  }
  return pending;
}

// Rank 0's end of the communicator goes before the others are joined: should the engine have failed
// (then it does not tell them to stop), they hear of that.
absl::Status LocalServer::End() {
  engine_.reset();
  worker_.reset();
  if (!comms_.empty()) comms_[0].reset();
  for (std::thread& other : others_) other.join();
  others_.clear();
  for (const absl::Status& end : ends_) {
    if (!end.ok()) return end;
  }
  return absl::OkStatus();
}

}  // namespace metattn::test
