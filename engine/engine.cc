#include "engine/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/active_request.h"
#include "engine/engine_loop.h"
#include "kernels/types.h"

namespace metattn {
namespace {

using Clock = ActiveRequest::Clock;

// How often an engine without requests looks whether elastic mode may go a level down.
constexpr std::chrono::milliseconds kElasticTick{250};
// How long Drain waits for a cancellation to take effect: it does between steps.
constexpr std::chrono::seconds kCancelGrace{5};

std::uint64_t RandomWord() {
  thread_local std::random_device device;
  return (static_cast<std::uint64_t>(device()) << 32) | device();
}

// Everything checked once, when the engine is made.
struct Limits {
  std::int64_t vocab = 0;
  int max_context = 0;        // positions of one sequence
  std::int64_t capacity = 0;  // positions that fit into the K/V blocks
  std::size_t max_live = 0;   // requests that wait or run
  SchedulerOptions scheduler;
  RoutingPolicy routing;  // at the start
  RoutingAbilities abilities;
  std::vector<float> cost_weight_levels;
  ElasticOptions elastic;
  double shadow_rate = 0;
};

absl::StatusOr<Limits> MakeLimits(const EngineOptions& options, const ModelOptions& model_options,
                                  const ModelConfig& config, const Worker& worker) {
  const auto refuse = [](const char* flag, long long value, const char* must) {
    return absl::InvalidArgumentError(absl::StrFormat("%s is %d, must be %s", flag, value, must));
  };
  if (options.max_num_seqs < 1) return refuse("--max-num-seqs", options.max_num_seqs, ">= 1");
  if (options.max_num_batched_tokens < 1) {
    return refuse("--max-num-batched-tokens", options.max_num_batched_tokens, ">= 1");
  }
  if (options.max_queue < 0) return refuse("--max-queue", options.max_queue, ">= 0");
  if (options.max_model_len < 0 || options.max_model_len > config.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--max-model-len is %d, the model's context is %d tokens (0: all of it)",
                        options.max_model_len, config.max_positions));
  }
  if (config.vocab < 1 || config.max_positions < 1) {
    return absl::InvalidArgumentError("the model has no vocabulary or no context");
  }
  if (worker.blocks() < 1) {
    return absl::ResourceExhaustedError("the K/V cache has no block; raise --kv-cache-memory");
  }
  Limits limits;
  limits.vocab = config.vocab;
  limits.max_context = options.max_model_len > 0 ? options.max_model_len : config.max_positions;
  limits.capacity = worker.blocks() * kBlockTokens;
  limits.max_live =
      static_cast<std::size_t>(std::min(options.max_num_seqs, options.max_num_batched_tokens)) +
      static_cast<std::size_t>(options.max_queue);
  limits.scheduler.blocks = worker.blocks();
  limits.scheduler.max_sequences = options.max_num_seqs;
  limits.scheduler.max_batch_tokens = options.max_num_batched_tokens;
  limits.scheduler.max_context = limits.max_context;
  limits.scheduler.prefix_reuse = options.prefix_reuse;
  limits.shadow_rate = options.shadow_rate;
  limits.scheduler.linear_states = worker.controller() != nullptr;
  limits.scheduler.state_snapshots = options.prefix_reuse ? options.state_snapshots : 0;
  // Linear attention over every position has states that end with their sequence.
  const bool linear_all = worker.controller() != nullptr && worker.controller()->spec().linear_all;
  limits.scheduler.window = linear_all ? 0 : worker.window();
  // The salt makes block hashes unpredictable to clients (engine/model/page_pool.cc). Nothing
  // outlives the process, so nothing needs to find them again.
  limits.scheduler.hash_identity = absl::StrFormat(
      "model=%s;name=%s;controller=%s;window=%d;sinks=%d;salt=%016x%016x", model_options.model,
      config.name, worker.controller() == nullptr ? "none" : worker.controller()->digest(),
      worker.window(), worker.sinks(), RandomWord(), RandomWord());
  return limits;
}

absl::Status CheckRequest(const GenerationRequest& request, const Limits& limits) {
  if (request.prompt.empty()) {
    return absl::InvalidArgumentError("prompt is empty; give at least one token");
  }
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  if (prompt >= limits.max_context) {
    return absl::InvalidArgumentError(
        absl::StrFormat("prompt has %d tokens and leaves no room in the context of %d tokens",
                        prompt, limits.max_context));
  }
  for (std::size_t i = 0; i < request.prompt.size(); ++i) {
    if (request.prompt[i] >= 0 && request.prompt[i] < limits.vocab) continue;
    return absl::InvalidArgumentError(
        absl::StrFormat("prompt[%d] is token id %d, the vocabulary has ids 0 to %d", i,
                        request.prompt[i], limits.vocab - 1));
  }
  if (request.deadline_s && std::isnan(*request.deadline_s)) {
    return absl::InvalidArgumentError("deadline_s is NaN, must be a number of seconds");
  }
  if (absl::Status status = Validate(request.sampling, limits.vocab); !status.ok()) return status;
  if (prompt > limits.capacity) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("prompt has %d tokens, the whole K/V cache holds %d; raise "
                        "--kv-cache-memory",
                        prompt, limits.capacity));
  }
  return absl::OkStatus();
}

// What the request may generate: up to its own limit, the context and the memory. The last token
// is never fed back, so it needs no place in the K/V cache.
std::int32_t MaxTokens(const GenerationRequest& request, const Limits& limits) {
  const auto prompt = static_cast<std::int64_t>(request.prompt.size());
  const std::int64_t room =
      std::min<std::int64_t>(limits.max_context - prompt, limits.capacity - prompt + 1);
  const std::int64_t asked = request.sampling.max_tokens;
  return static_cast<std::int32_t>(asked > 0 ? std::min(asked, room) : room);
}

absl::StatusOr<RoutingPolicy> FirstRouting(const EngineOptions& options,
                                           const ControllerFile* controller, bool deterministic) {
  RoutingChange flags = options.routing;
  flags.route = options.route.route;
  flags.cost_weight = options.route.cost_weight;
  flags.eta = options.route.eta;
  return InitialRouting(flags, controller, deterministic);
}

EngineLoop::Args LoopArgs(const Limits& limits) {
  return {limits.scheduler,          limits.vocab,   limits.routing,
          limits.cost_weight_levels, limits.elastic, limits.shadow_rate};
}

class EngineImpl final : public Engine {
 public:
  EngineImpl(Limits limits, Worker& worker, const Tokenizer& tokenizer, EngineObserver* observer)
      : limits_(std::move(limits)),
        worker_(worker),
        tokenizer_(tokenizer),
        observer_(observer),
        loop_(LoopArgs(limits_), worker, observer),
        routing_(limits_.routing) {
    PublishCounts();
    thread_ = std::thread([this] { Run(); });
  }

  ~EngineImpl() override {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  absl::StatusOr<std::uint64_t> Submit(GenerationRequest request, EventSink sink) override;
  void Cancel(std::uint64_t id) override;
  EngineSnapshot Snapshot() const override;
  absl::StatusOr<RoutingPolicy> SetRouting(const RoutingChange& change) override;
  RoutingState Routing() const override;
  bool Drain(double seconds) override;
  int max_context() const override { return limits_.max_context; }

 private:
  void Run();
  bool Turn();
  void PublishCounts();
  absl::Status Refusal() const;

  const Limits limits_;
  Worker& worker_;
  const Tokenizer& tokenizer_;
  EngineObserver* const observer_;
  EngineLoop loop_;  // used by thread_ only, once that runs

  mutable std::mutex mutex_;  // guards all that follows
  std::condition_variable wake_;
  std::condition_variable idle_;
  std::vector<std::unique_ptr<ActiveRequest>> inbox_;
  std::vector<std::uint64_t> cancels_;
  std::uint64_t next_id_ = 1;
  std::size_t live_in_loop_ = 0;
  EngineSnapshot counts_;  // as of the last turn
  std::optional<Clock::time_point> step_started_;
  RoutingPolicy routing_;
  bool routing_changed_ = false;  // the loop has another one
  RoutingHistory history_;        // as of the last turn
  absl::Status failure_;
  bool draining_ = false;
  bool cancel_all_ = false;
  bool stop_ = false;

  std::thread thread_;
};

// Under the mutex.
absl::Status EngineImpl::Refusal() const {
  if (!failure_.ok()) {
    return absl::UnavailableError("the engine has failed: " + std::string(failure_.message()));
  }
  if (draining_ || stop_) return absl::UnavailableError("the server is shutting down");
  const std::size_t live = live_in_loop_ + inbox_.size();
  if (live >= limits_.max_live) {
    return absl::ResourceExhaustedError(absl::StrFormat(
        "the queue is full: %d requests run or wait (--max-queue, --max-num-seqs)", live));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::uint64_t> EngineImpl::Submit(GenerationRequest request, EventSink sink) {
  if (absl::Status status = CheckRequest(request, limits_); !status.ok()) return status;
  ActiveRequest::Args args;
  args.submitted = Clock::now();
  args.max_tokens = MaxTokens(request, limits_);
  args.vocab = limits_.vocab;
  args.seed = request.sampling.seed ? *request.sampling.seed : RandomWord();
  args.sink = std::move(sink);
  std::uint64_t id = 0;
  {
    std::lock_guard lock(mutex_);
    if (absl::Status status = Refusal(); !status.ok()) return status;
    auto wish = CheckWish(request.wish, routing_, limits_.abilities.controller);
    if (!wish.ok()) return wish.status();
    request.wish = *wish;
    args.request = std::move(request);
    id = args.id = next_id_++;
    inbox_.push_back(std::make_unique<ActiveRequest>(std::move(args), tokenizer_, observer_));
  }
  wake_.notify_one();
  return id;
}

void EngineImpl::Cancel(std::uint64_t id) {
  {
    std::lock_guard lock(mutex_);
    cancels_.push_back(id);
  }
  wake_.notify_one();
}

EngineSnapshot EngineImpl::Snapshot() const {
  std::lock_guard lock(mutex_);
  EngineSnapshot snapshot = counts_;
  snapshot.queued += static_cast<int>(inbox_.size());
  if (step_started_) {
    snapshot.seconds_in_current_step =
        std::chrono::duration<double>(Clock::now() - *step_started_).count();
  }
  snapshot.draining = draining_;
  snapshot.failed = !failure_.ok();
  return snapshot;
}

absl::StatusOr<RoutingPolicy> EngineImpl::SetRouting(const RoutingChange& change) {
  std::unique_lock lock(mutex_);
  auto next = ChangeRouting(routing_, change, limits_.abilities);
  if (!next.ok()) return next;
  routing_ = *next;
  routing_changed_ = true;
  lock.unlock();
  wake_.notify_one();
  return next;
}

RoutingState EngineImpl::Routing() const {
  RoutingState state;
  state.cost_weight_levels = limits_.cost_weight_levels;
  std::lock_guard lock(mutex_);
  state.policy = routing_;
  state.cost_weight = counts_.cost_weight;
  state.layers = history_.layers();
  state.recent = history_.Recent(loop_.SecondsAt(Clock::now()));
  return state;
}

bool EngineImpl::Drain(double seconds) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  const auto empty = [this] { return live_in_loop_ == 0 && inbox_.empty(); };
  const auto wait = std::chrono::duration<double>(std::clamp(seconds, 0.0, 1e7));
  if (idle_.wait_for(lock, wait, empty)) return true;
  cancel_all_ = true;
  wake_.notify_one();
  idle_.wait_for(lock, kCancelGrace, empty);
  return false;
}

// Under the mutex (or before the thread runs).
void EngineImpl::PublishCounts() {
  const Scheduler& scheduler = loop_.scheduler();
  live_in_loop_ = static_cast<std::size_t>(loop_.live());
  const bool any = live_in_loop_ > 0;  // after a failure the scheduler's numbers mean nothing
  counts_.queued = any ? scheduler.waiting() : 0;
  counts_.running = any ? scheduler.running() : 0;
  counts_.blocks_used = any ? scheduler.blocks_used() : 0;
  counts_.blocks_capacity = scheduler.blocks_capacity();
  if (counts_.steps != loop_.steps()) history_ = loop_.history();
  counts_.steps = loop_.steps();
  counts_.cost_weight = loop_.routing().cost_weight();
  counts_.force_full = loop_.routing().policy().force_full;
}

void EngineImpl::Run() {
  while (Turn()) {
  }
  absl::Status failure;
  {
    std::lock_guard lock(mutex_);
    failure = failure_;
  }
  // After a failed step the ranks can no longer be spoken to (engine/worker.h).
  if (failure.ok()) worker_.Stop().IgnoreError();
}

// One turn: what clients asked for since the last one, then one step. False: the end.
bool EngineImpl::Turn() {
  std::vector<std::unique_ptr<ActiveRequest>> accepted;
  std::vector<std::uint64_t> cancelled;
  bool stop = false, cancel_all = false;
  absl::Status failure;
  std::optional<RoutingPolicy> routing;
  {
    std::unique_lock lock(mutex_);
    step_started_.reset();
    PublishCounts();
    if (live_in_loop_ == 0 && inbox_.empty()) idle_.notify_all();
    const auto something = [this] {
      return stop_ || cancel_all_ || live_in_loop_ > 0 || !inbox_.empty() || !cancels_.empty() ||
             routing_changed_;
    };
    if (loop_.routing().raised()) {
      wake_.wait_for(lock, kElasticTick, something);
    } else {
      wake_.wait(lock, something);
    }
    accepted.swap(inbox_);
    cancelled.swap(cancels_);
    if (std::exchange(routing_changed_, false)) routing = routing_;
    live_in_loop_ += accepted.size();
    counts_.queued += static_cast<int>(accepted.size());
    stop = stop_;
    cancel_all = std::exchange(cancel_all_, false);
    failure = failure_;
    step_started_ = Clock::now();
  }
  if (routing) loop_.SetRouting(*routing);
  for (auto& request : accepted) loop_.Accept(std::move(request));
  if (failure.ok()) {
    for (const std::uint64_t id : cancelled) loop_.Cancel(id);
    if (stop || cancel_all) {
      loop_.EndAll(FinishReason::kCancelled, absl::CancelledError("the server is shutting down"));
    }
    if (stop) return false;
    loop_.ExpireDeadlines(Clock::now());
    failure = loop_.Step();
  }
  if (failure.ok()) return true;
  {
    std::lock_guard lock(mutex_);
    failure_ = failure;
  }
  loop_.EndAll(FinishReason::kError,
               absl::InternalError("a step failed: " + std::string(failure.message())));
  return !stop;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options,
                                                       const ModelOptions& model_options,
                                                       const ModelConfig& config, Worker& worker,
                                                       const Tokenizer& tokenizer,
                                                       EngineObserver* observer) {
  absl::StatusOr<Limits> limits = MakeLimits(options, model_options, config, worker);
  if (!limits.ok()) return limits.status();
  const ControllerFile* controller = worker.controller();
  limits->abilities = {controller != nullptr, model_options.deterministic};
  if (controller != nullptr) limits->cost_weight_levels = controller->spec().cost_weight_levels;
  auto routing = FirstRouting(options, controller, model_options.deterministic);
  if (!routing.ok()) return routing.status();
  limits->routing = *std::move(routing);
  limits->elastic.raise_after_s = options.elastic_raise_after_s;
  limits->elastic.lower_after_s = options.elastic_lower_after_s;
  return std::make_unique<EngineImpl>(*std::move(limits), worker, tokenizer, observer);
}

}  // namespace metattn
