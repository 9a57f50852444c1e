#include "tests/support/model_runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "engine/formats/checkpoint.h"
#include "engine/model/config.h"
#include "parallel/local_communicator.h"

namespace metattn::test {
namespace {

WorkerLimits LimitsFor(std::size_t tokens, const RunnerOptions& options) {
  WorkerLimits limits;
  limits.max_batch_tokens = options.chunk;
  limits.max_sequences = 1;
  limits.max_logit_rows = options.chunk;
  limits.max_context = static_cast<int>(tokens);
  limits.min_blocks = static_cast<std::int64_t>((tokens + kBlockTokens - 1) / kBlockTokens);
  limits.max_blocks = limits.min_blocks;
  limits.perturb = options.perturb;
  limits.perturb_seed = options.perturb_seed;
  return limits;
}

absl::Status Feed(Worker& worker, std::span<const std::int32_t> tokens,
                  const RunnerOptions& options, RunnerOutput& out) {
  const auto length = static_cast<std::int32_t>(tokens.size());
  std::vector<std::int32_t> blocks((tokens.size() + kBlockTokens - 1) / kBlockTokens);
  std::iota(blocks.rbegin(), blocks.rend(),
            0);  // backwards, so that a table that is not read shows
  for (std::int32_t begin = 0; begin < length; begin += options.chunk) {
    const std::int32_t rows = std::min(options.chunk, length - begin);
    StepPlan plan;
    plan.step = begin + 1;
    plan.sequences.push_back({1, begin, rows, blocks});
    plan.tokens.assign(tokens.begin() + begin, tokens.begin() + begin + rows);
    plan.route.assign(rows, static_cast<std::uint8_t>(options.route));
    plan.logit_rows.resize(rows);
    std::iota(plan.logit_rows.begin(), plan.logit_rows.end(), 0);
    absl::StatusOr<StepOutput> step = worker.Step(plan);
    if (!step.ok()) return step.status();
    out.logits.insert(out.logits.end(), step->logits.begin(), step->logits.end());
    for (const StepResult& r : step->per_rank) {
      out.sum.attention_bytes_read += r.attention_bytes_read;
      out.sum.attention_bytes_dense += r.attention_bytes_dense;
      out.sum.eligible_rows += r.eligible_rows;
      out.sum.full_rows += r.full_rows;
      out.sum.local_rows += r.local_rows;
    }
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
  model.window = options.window;
  model.sinks = options.sinks;
  model.deterministic = options.deterministic;
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
