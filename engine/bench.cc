#include "engine/bench.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

std::int32_t BlocksFor(std::int64_t tokens) {
  return static_cast<std::int32_t>((tokens + kBlockTokens - 1) / kBlockTokens);
}

// The sequences of a run: their text and their blocks, the same for every repeat.
class Runs {
 public:
  Runs(Worker& worker, std::span<const std::int32_t> text, const BenchOptions& options)
      : worker_(worker), text_(text), options_(options) {
    const std::int32_t longest =
        std::max(options.prompt_tokens, options.context + options.decode_tokens);
    blocks_per_sequence_ = BlocksFor(longest);
    const std::size_t step = std::max<std::size_t>(text.size() / options.sequences, 1);
    for (std::int32_t s = 0; s < options.sequences; ++s) starts_.push_back(s * step);
  }

  // Fills every sequence with `tokens` tokens; logits of each one's last row, as a server would
  // want.
  absl::Status Prefill(std::int32_t tokens) {
    for (std::int32_t s = 0; s < options_.sequences; ++s) {
      for (std::int32_t begin = 0; begin < tokens; begin += options_.rows_per_step) {
        StepPlan plan = NewPlan();
        AddRows(plan, s, begin, std::min(options_.rows_per_step, tokens - begin));
        if (begin + options_.rows_per_step >= tokens) {
          plan.logit_rows = {static_cast<std::int32_t>(plan.tokens.size()) - 1};
        }
        absl::StatusOr<StepOutput> output = worker_.Step(plan);
        if (!output.ok()) return output.status();
      }
    }
    return absl::OkStatus();
  }

  // One token for every sequence at `position`.
  absl::StatusOr<StepOutput> Decode(std::int32_t position) {
    StepPlan plan = NewPlan();
    for (std::int32_t s = 0; s < options_.sequences; ++s) {
      AddRows(plan, s, position, 1);
      plan.logit_rows.push_back(s);
    }
    return worker_.Step(plan);
  }

 private:
  StepPlan NewPlan() {
    StepPlan plan;
    plan.step = ++step_;
    return plan;
  }

  void AddRows(StepPlan& plan, std::int32_t s, std::int32_t begin, std::int32_t rows) {
    StepSequence sequence = {static_cast<std::uint64_t>(s) + 1, begin, rows, {}};
    sequence.blocks.resize(BlocksFor(begin + rows));
    std::iota(sequence.blocks.begin(), sequence.blocks.end(), s * blocks_per_sequence_);
    for (std::int32_t i = 0; i < rows; ++i) {
      plan.tokens.push_back(text_[(starts_[s] + begin + i) % text_.size()]);
      plan.route.push_back(static_cast<std::uint8_t>(options_.route));
    }
    plan.sequences.push_back(std::move(sequence));
  }

  Worker& worker_;
  std::span<const std::int32_t> text_;
  const BenchOptions& options_;
  std::int32_t blocks_per_sequence_ = 0;
  std::vector<std::size_t> starts_;
  std::uint64_t step_ = 0;
};

void Say(const BenchOptions& options, const std::string& what) {
  if (options.progress) options.progress(what);
}

absl::Status TimePrefill(Runs& runs, const BenchOptions& options, BenchReport& report) {
  double seconds = 0;
  for (int r = -1; r < options.repeats; ++r) {  // -1: warm-up
    const Clock::time_point start = Clock::now();
    if (absl::Status s = runs.Prefill(options.prompt_tokens); !s.ok()) return s;
    const double took = Since(start);
    if (r >= 0) seconds += took;
    Say(options, absl::StrFormat("prefill %d/%d: %.1f tokens/s", r + 1, options.repeats,
                                 options.prompt_tokens * options.sequences / took));
  }
  report.prefill_tokens_per_s =
      static_cast<double>(options.prompt_tokens) * options.sequences * options.repeats / seconds;
  return absl::OkStatus();
}

struct DecodeSums {
  std::vector<double> steps;  // seconds each
  double attention = 0, wait = 0;

  void Add(const StepOutput& output, double seconds, BenchReport& report) {
    steps.push_back(seconds);
    double slowest = 0, wait_sum = 0;
    for (const StepResult& r : output.per_rank) {
      slowest = std::max(slowest, r.attention_seconds);
      wait_sum += r.wait_seconds;
      report.attention_bytes_read += r.attention_bytes_read;
      report.attention_bytes_dense += r.attention_bytes_dense;
    }
    attention += slowest;
    wait += wait_sum / static_cast<double>(output.per_rank.size());
  }
};

absl::Status TimeDecode(Runs& runs, const BenchOptions& options, BenchReport& report) {
  Say(options, absl::StrFormat("caching %d tokens of context for %d sequences", options.context,
                               options.sequences));
  if (absl::Status s = runs.Prefill(options.context); !s.ok()) return s;
  DecodeSums sums;
  for (int r = -1; r < options.repeats; ++r) {
    const Clock::time_point begin = Clock::now();
    const std::int32_t tokens = r < 0 ? std::min(options.decode_tokens, 8) : options.decode_tokens;
    for (std::int32_t i = 0; i < tokens; ++i) {
      const Clock::time_point start = Clock::now();
      absl::StatusOr<StepOutput> output = runs.Decode(options.context + i);
      if (!output.ok()) return output.status();
      if (r >= 0) sums.Add(*output, Since(start), report);
    }
    Say(options, absl::StrFormat("decode %d/%d: %.1f tokens/s", r + 1, options.repeats,
                                 tokens * options.sequences / Since(begin)));
  }
  std::sort(sums.steps.begin(), sums.steps.end());
  const auto n = sums.steps.size();
  const double total = std::accumulate(sums.steps.begin(), sums.steps.end(), 0.0);
  report.decode_tokens_per_s = static_cast<double>(n) * options.sequences / total;
  report.decode_step_p50_ms = sums.steps[n / 2] * 1e3;
  report.decode_step_p99_ms = sums.steps[std::min(n - 1, n * 99 / 100)] * 1e3;
  report.decode_attention_ms = sums.attention / static_cast<double>(n) * 1e3;
  report.decode_wait_ms = sums.wait / static_cast<double>(n) * 1e3;
  return absl::OkStatus();
}

absl::Status CheckOptions(const BenchOptions& o, std::size_t text_tokens) {
  if (o.prompt_tokens < 0)
    return absl::InvalidArgumentError("--prompt-tokens must not be negative");
  if (o.decode_tokens < 0)
    return absl::InvalidArgumentError("--decode-tokens must not be negative");
  if (o.context < 0) return absl::InvalidArgumentError("--context must not be negative");
  if (o.sequences < 1) return absl::InvalidArgumentError("--sequences must be at least 1");
  if (o.repeats < 1) return absl::InvalidArgumentError("--repeats must be at least 1");
  const std::int32_t longest = std::max(o.prompt_tokens, o.context + o.decode_tokens);
  if (text_tokens < static_cast<std::size_t>(longest)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("--text: %d tokens of text, a sequence needs %d",
                        static_cast<std::int64_t>(text_tokens), longest));
  }
  return absl::OkStatus();
}

}  // namespace

WorkerLimits LimitsForBench(const BenchOptions& options) {
  const std::int32_t longest =
      std::max(options.prompt_tokens, options.context + options.decode_tokens);
  WorkerLimits limits;
  limits.max_batch_tokens = std::max(options.rows_per_step, options.sequences);
  limits.max_sequences = options.sequences;
  limits.max_logit_rows = options.sequences;
  limits.max_context = std::max(longest, 1);
  limits.min_blocks =
      std::max<std::int64_t>(1, std::int64_t{BlocksFor(longest)} * options.sequences);
  limits.max_blocks = limits.min_blocks;
  return limits;
}

absl::StatusOr<BenchReport> RunBench(Worker& worker, std::span<const std::int32_t> text,
                                     const BenchOptions& options) {
  if (absl::Status s = CheckOptions(options, text.size()); !s.ok()) return s;
  BenchReport report;
  report.ranks = worker.ranks();
  report.threads_per_rank = worker.threads();
  report.isa = worker.isa();
  report.weight_bytes = worker.weight_bytes();
  Runs runs(worker, text, options);
  if (options.prompt_tokens > 0) {
    if (absl::Status s = TimePrefill(runs, options, report); !s.ok()) return s;
  }
  if (options.decode_tokens > 0) {
    if (absl::Status s = TimeDecode(runs, options, report); !s.ok()) return s;
  }
  return report;
}

std::string ToJson(const BenchReport& r) {
  const nlohmann::json json = {
      {"prefill_tokens_per_s", r.prefill_tokens_per_s},
      {"decode_tokens_per_s", r.decode_tokens_per_s},
      {"decode_step_ms", {{"p50", r.decode_step_p50_ms}, {"p99", r.decode_step_p99_ms}}},
      {"decode_attention_ms", r.decode_attention_ms},
      {"decode_wait_ms", r.decode_wait_ms},
      {"ranks", r.ranks},
      {"threads_per_rank", r.threads_per_rank},
      {"isa", r.isa},
      {"weight_bytes", r.weight_bytes},
      {"attention_bytes_read", r.attention_bytes_read},
      {"attention_bytes_dense", r.attention_bytes_dense}};
  return json.dump();
}

}  // namespace metattn
