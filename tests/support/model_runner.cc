#include "tests/support/model_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "engine/model/page_pool.h"
#include "parallel/local_communicator.h"

namespace metattn::test {
namespace {

constexpr int kBestRows = 3;  // of a step, the last ones, of which the best token is wanted too

WorkerLimits LimitsFor(std::size_t tokens, const RunnerOptions& options) {
  WorkerLimits limits;
  limits.max_sequences = 1 + options.company;
  const int largest = std::max(options.chunk, options.prompt);
  limits.max_batch_tokens = largest * limits.max_sequences;
  limits.max_logit_rows = largest + kBestRows;
  limits.state_snapshots = options.snapshots ? limits.max_sequences : 0;
  limits.max_context = static_cast<int>(tokens);
  limits.min_blocks = BlocksFor(tokens) * limits.max_sequences;
  limits.max_blocks = limits.min_blocks;
  limits.perturb = options.perturb;
  limits.perturb_seed = options.perturb_seed;
  return limits;
}

// Where each step begins.
std::vector<std::int32_t> Begins(std::int32_t length, const RunnerOptions& options) {
  std::vector<std::int32_t> begins = {0};
  for (std::int32_t at = options.prompt > 0 ? options.prompt : options.chunk; at < length;
       at += options.chunk) {
    begins.push_back(at);
  }
  return begins;
}

// Sequence 0 is the one that is wanted; it comes last in the step. The others have its tokens from
// another place on, slots and blocks of their own, and what policies there are.
void AddSequence(int index, std::span<const std::int32_t> tokens, std::int32_t begin,
                 const RunnerOptions& options, StepPlan& plan) {
  const auto length = static_cast<std::int32_t>(tokens.size());
  const std::int32_t wanted = begin == 0 && options.prompt > 0 ? options.prompt : options.chunk;
  const std::int32_t rows = std::min(wanted, length - begin);
  StepSequence s;
  s.id = static_cast<std::uint64_t>(index) + 1;
  s.start = begin;
  s.rows = rows;
  s.blocks.resize(static_cast<std::size_t>(BlocksFor(tokens.size())));
  // Backwards, so that a table that is not read shows.
  std::iota(s.blocks.rbegin(), s.blocks.rend(), index * static_cast<int>(s.blocks.size()));
  s.state_slot = options.company - index;
  s.state_position = options.rebuild_states ? -1 : begin - 1;
  if (options.snapshots) {
    const std::int32_t sequences = options.company + 1;
    s.state_slot = (s.state_slot + begin / options.chunk) % sequences;
    s.state_save = sequences + index;
    if (begin > 0) s.state_load = s.state_save;
  }
  plan.sequences.push_back(std::move(s));
  const RoutePolicy others[] = {{options.controller.empty() ? Route::kFull : Route::kLinear, 0, 0},
                                {Route::kLocal, 0, 0}};
  for (std::int32_t i = 0; i < rows; ++i) {
    const std::int32_t from = (begin + i + 17 * index) % length;
    plan.tokens.push_back(tokens[static_cast<std::size_t>(from)]);
    plan.policy.push_back(index == 0 ? options.policy : others[index % 2]);
  }
}

// The best tokens of the last `rows` rows are those of their largest logits.
absl::Status CheckBest(const StepOutput& step, std::ptrdiff_t rows, std::int64_t vocab) {
  if (std::ssize(step.best) != rows) return absl::InternalError("another number of best tokens");
  auto row = step.logits.end() - rows * vocab;
  for (const std::int32_t best : step.best) {
    if (std::max_element(row, row + vocab) - row != best) {
      return absl::InternalError("a best token is not that of the largest logit");
    }
    row += vocab;
  }
  return absl::OkStatus();
}

// Of the last sequence's rows: the best tokens, or all logits and the best tokens of some.
void WantOutputs(bool greedy, StepPlan& plan) {
  std::vector<std::int32_t> rows(static_cast<std::size_t>(plan.sequences.back().rows));
  std::iota(rows.begin(), rows.end(), static_cast<std::int32_t>(plan.tokens.size() - rows.size()));
  if (!greedy) {
    plan.logit_rows = rows;
    rows.erase(rows.begin(), rows.end() - std::min<std::ptrdiff_t>(kBestRows, std::ssize(rows)));
  }
  plan.best_rows = std::move(rows);
}

absl::Status Feed(Worker& worker, std::span<const std::int32_t> tokens,
                  const RunnerOptions& options, RunnerOutput& out) {
  const auto length = static_cast<std::int32_t>(tokens.size());
  const std::vector<std::int32_t> begins = Begins(length, options);
  const int steps = static_cast<int>(begins.size());
  for (int i = 0; i < options.repeats * steps; ++i) {
    const std::int32_t begin = begins[static_cast<std::size_t>(i % steps)];
    if (begin == 0) out = {.vocab = out.vocab};
    StepPlan plan;
    plan.step = static_cast<std::uint64_t>(i) + 1;
    for (int s = options.company; s >= 0; --s) AddSequence(s, tokens, begin, options, plan);
    WantOutputs(options.greedy, plan);
    absl::StatusOr<StepOutput> step = worker.Step(plan);
    if (!step.ok()) return step.status();
    if (options.greedy) {
      out.best.insert(out.best.end(), step->best.begin(), step->best.end());
    } else if (absl::Status s = CheckBest(*step, std::ssize(plan.best_rows), out.vocab); !s.ok()) {
      return s;
    }
    out.logits.insert(out.logits.end(), step->logits.begin(), step->logits.end());
    out.routing.Add(step->routing.sequences.back());
    for (const StepResult& result : step->per_rank) out.helped_rows += result.helped_rows;
  }
  return worker.Stop();
}

}  // namespace

absl::StatusOr<RunnerOutput> RunModel(const std::string& model_path,
                                      std::span<const std::int32_t> tokens,
                                      const RunnerOptions& options) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model_path);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<ModelConfig> config = ModelConfig::FromCheckpoint(**checkpoint);
  if (!config.ok()) return config.status();
  ModelOptions model;
  model.model = model_path;
  model.device = options.device;
  model.isa = options.isa;
  model.threads = options.threads;
  model.rank_weights = options.rank_weights;
  model.controller = options.controller;
  model.record_decisions = options.record_decisions;
  model.replay_decisions = options.replay_decisions;
  model.window = options.window;
  model.sinks = options.sinks;
  model.deterministic = options.deterministic;
  model.attention_helpers = options.helpers;
  const WorkerLimits limits = LimitsFor(tokens.size(), options);
  auto comms = MakeLocalCommunicators(options.ranks, {.ordered_sum = options.deterministic});
  std::vector<absl::Status> ends(options.ranks);
  std::vector<std::thread> others;
  for (int r = 1; r < options.ranks; ++r) {
    others.emplace_back([&, r] {
      auto worker = Worker::Create(**checkpoint, *config, model, limits, *comms[r]);
      ends[r] = worker.ok() ? (*worker)->Serve() : worker.status();
    });
  }
  RunnerOutput out;
  out.vocab = config->vocab;
  {
    auto worker = Worker::Create(**checkpoint, *config, model, limits, *comms[0]);
    ends[0] = worker.ok() ? Feed(**worker, tokens, options, out) : worker.status();
  }
  for (std::thread& t : others) t.join();
  for (const absl::Status& s : ends) {
    if (!s.ok()) return s;
  }
  return out;
}

double MaxAbsDifference(std::span<const float> a, std::span<const float> b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - b[i]);
    worst = std::isnan(difference) ? INFINITY : std::max(worst, difference);
  }
  return worst;
}

absl::StatusOr<double> MeasuredBound(const std::string& model_path,
                                     std::span<const std::int32_t> tokens,
                                     const RunnerOptions& options, double relative) {
  absl::StatusOr<RunnerOutput> plain = RunModel(model_path, tokens, options);
  if (!plain.ok()) return plain.status();
  double worst = 0;
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    RunnerOptions noisy = options;
    noisy.perturb = relative;
    noisy.perturb_seed = seed;
    absl::StatusOr<RunnerOutput> output = RunModel(model_path, tokens, noisy);
    if (!output.ok()) return output.status();
    worst = std::max(worst, MaxAbsDifference(plain->logits, output->logits));
  }
  return 4 * worst;
}

}  // namespace metattn::test
