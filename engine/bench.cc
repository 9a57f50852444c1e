#include "engine/bench.h"

#include <algorithm>
#include <chrono>
#include <numeric>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/model/page_pool.h"
#include "nlohmann/json.hpp"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The sequences of one policy: their text, blocks and state slots, the same for every repeat. The
// baseline's lie behind those of the policy under test.
class Runs {
 public:
  Runs(Worker& worker, std::span<const std::int32_t> text, const BenchOptions& options,
       const RoutePolicy& policy, bool baseline)
      : worker_(worker),
        text_(text),
        options_(options),
        policy_(policy),
        first_(baseline ? options.sequences : 0) {
    const std::int32_t longest =
        std::max(options.prompt_tokens, options.context + options.decode_tokens);
    blocks_per_sequence_ = static_cast<std::int32_t>(BlocksFor(longest));
    const std::size_t step = std::max<std::size_t>(text.size() / options.sequences, 1);
    for (std::int32_t s = 0; s < options.sequences; ++s) starts_.push_back(s * step);
  }

  // Fills every sequence with `tokens` tokens; logits of each one's last row, as a server would
  // want.
  absl::Status Prefill(std::int32_t tokens, double& attention_seconds) {
    for (std::int32_t s = 0; s < options_.sequences; ++s) {
      for (std::int32_t begin = 0; begin < tokens; begin += options_.rows_per_step) {
        StepPlan plan = NewPlan();
        AddRows(plan, s, begin, std::min(options_.rows_per_step, tokens - begin));
        if (begin + options_.rows_per_step >= tokens) {
          plan.logit_rows = {static_cast<std::int32_t>(plan.tokens.size()) - 1};
        }
        absl::StatusOr<StepOutput> output = worker_.Step(plan);
        if (!output.ok()) return output.status();
        double slowest = 0;
        for (const StepResult& r : output->per_rank) {
          slowest = std::max(slowest, r.attention_seconds);
        }
        attention_seconds += slowest;
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
    const std::int32_t slot = first_ + s;
    StepSequence sequence = {
        static_cast<std::uint64_t>(slot) + 1, begin, rows, {}, slot, begin - 1};
    sequence.blocks.resize(BlocksFor(begin + rows));
    std::iota(sequence.blocks.begin(), sequence.blocks.end(), slot * blocks_per_sequence_);
    for (std::int32_t i = 0; i < rows; ++i) {
      plan.tokens.push_back(text_[(starts_[s] + begin + i) % text_.size()]);
      plan.policy.push_back(policy_);
    }
    plan.sequences.push_back(std::move(sequence));
  }

  Worker& worker_;
  std::span<const std::int32_t> text_;
  const BenchOptions& options_;
  const RoutePolicy policy_;
  const std::int32_t first_;
  std::int32_t blocks_per_sequence_ = 0;
  std::vector<std::size_t> starts_;
  std::uint64_t step_ = 0;
};

void Say(const BenchOptions& options, const std::string& what) {
  if (options.progress) options.progress(what);
}

// One policy's sequences and what was measured of them so far.
struct Contest {
  Runs runs;
  std::string name;
  BenchTimings timings;
  double prefill_seconds = 0, prefill_attention = 0;
  std::vector<double> steps;  // seconds each
  double attention = 0, controller = 0, wait = 0;

  void Add(const StepOutput& output, double seconds);
  void Conclude(const BenchOptions& options);
};

void Contest::Add(const StepOutput& output, double seconds) {
  steps.push_back(seconds);
  const RoutingCounts routing = output.routing.Total();
  timings.attention_bytes_read += routing.bytes_read;
  timings.attention_bytes_dense += routing.bytes_dense;
  double slowest = 0, decided = 0, waited = 0;
  for (const StepResult& r : output.per_rank) {
    slowest = std::max(slowest, r.attention_seconds);
    decided = std::max(decided, r.controller_seconds);
    waited += r.wait_seconds;
    timings.decode_helped_rows += static_cast<double>(r.helped_rows);
  }
  attention += slowest;
  controller += decided;
  wait += waited / static_cast<double>(output.per_rank.size());
}

void Contest::Conclude(const BenchOptions& options) {
  if (prefill_seconds > 0) {
    timings.prefill_attention_ms = prefill_attention / options.repeats * 1e3;
    timings.prefill_tokens_per_s = static_cast<double>(options.prompt_tokens) * options.sequences *
                                   options.repeats / prefill_seconds;
  }
  if (steps.empty()) return;
  std::sort(steps.begin(), steps.end());
  const std::size_t n = steps.size();
  const double total = std::accumulate(steps.begin(), steps.end(), 0.0);
  timings.decode_tokens_per_s = static_cast<double>(n) * options.sequences / total;
  timings.decode_step_p50_ms = steps[n / 2] * 1e3;
  timings.decode_step_p99_ms = steps[std::min(n - 1, n * 99 / 100)] * 1e3;
  timings.decode_attention_ms = attention / static_cast<double>(n) * 1e3;
  timings.decode_controller_ms = controller / static_cast<double>(n) * 1e3;
  timings.decode_wait_ms = wait / static_cast<double>(n) * 1e3;
  timings.decode_helped_rows /= static_cast<double>(n);
}

absl::Status TimePrefill(std::span<Contest> contests, const BenchOptions& options) {
  for (int r = -1; r < options.repeats; ++r) {  // -1: warm-up
    for (Contest& c : contests) {
      double attention = 0;
      const Clock::time_point start = Clock::now();
      if (absl::Status s = c.runs.Prefill(options.prompt_tokens, attention); !s.ok()) return s;
      const double took = Since(start);
      if (r >= 0) c.prefill_seconds += took;
      if (r >= 0) c.prefill_attention += attention;
      Say(options,
          absl::StrFormat("%s prefill %d/%d: %.1f tokens/s", c.name, r + 1, options.repeats,
                          options.prompt_tokens * options.sequences / took));
    }
  }
  return absl::OkStatus();
}

absl::Status TimeDecode(std::span<Contest> contests, const BenchOptions& options) {
  Say(options, absl::StrFormat("caching %d tokens of context for %d sequences", options.context,
                               options.sequences));
  for (Contest& c : contests) {
    double unused = 0;
    if (absl::Status s = c.runs.Prefill(options.context, unused); !s.ok()) return s;
  }
  for (int r = -1; r < options.repeats; ++r) {
    const std::int32_t tokens = r < 0 ? std::min(options.decode_tokens, 8) : options.decode_tokens;
    for (Contest& c : contests) {
      const Clock::time_point begin = Clock::now();
      for (std::int32_t i = 0; i < tokens; ++i) {
        const Clock::time_point start = Clock::now();
        absl::StatusOr<StepOutput> output = c.runs.Decode(options.context + i);
        if (!output.ok()) return output.status();
        if (r >= 0) c.Add(*output, Since(start));
      }
      Say(options, absl::StrFormat("%s decode %d/%d: %.1f tokens/s", c.name, r + 1, options.repeats,
                                   tokens * options.sequences / Since(begin)));
    }
  }
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
  const std::int32_t contests = options.baseline ? 2 : 1;
  limits.max_batch_tokens = std::max(options.rows_per_step, options.sequences);
  limits.max_sequences = options.sequences * contests;  // state slots
  limits.max_logit_rows = options.sequences;
  limits.max_context = std::max(longest, 1);
  limits.min_blocks = std::max<std::int64_t>(1, BlocksFor(longest) * options.sequences * contests);
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
  std::vector<Contest> contests;
  contests.push_back({Runs(worker, text, options, options.policy, false), "policy"});
  if (options.baseline) {
    contests.push_back({Runs(worker, text, options, *options.baseline, true), "baseline"});
  }
  if (options.prompt_tokens > 0) {
    if (absl::Status s = TimePrefill(contests, options); !s.ok()) return s;
  }
  if (options.decode_tokens > 0) {
    if (absl::Status s = TimeDecode(contests, options); !s.ok()) return s;
  }
  for (Contest& c : contests) c.Conclude(options);
  report.timings = contests.front().timings;
  if (options.baseline) report.baseline = contests.back().timings;
  return report;
}

namespace {

nlohmann::json TimingsJson(const BenchTimings& t) {
  return {{"prefill_tokens_per_s", t.prefill_tokens_per_s},
          {"prefill_attention_ms", t.prefill_attention_ms},
          {"decode_tokens_per_s", t.decode_tokens_per_s},
          {"decode_step_ms", {{"p50", t.decode_step_p50_ms}, {"p99", t.decode_step_p99_ms}}},
          {"decode_attention_ms", t.decode_attention_ms},
          {"decode_controller_ms", t.decode_controller_ms},
          {"decode_wait_ms", t.decode_wait_ms},
          {"decode_helped_rows", t.decode_helped_rows},
          {"attention_bytes_read", t.attention_bytes_read},
          {"attention_bytes_dense", t.attention_bytes_dense}};
}

}  // namespace

std::string ToJson(const BenchReport& r) {
  nlohmann::json json = TimingsJson(r.timings);
  json["ranks"] = r.ranks;
  json["threads_per_rank"] = r.threads_per_rank;
  json["isa"] = r.isa;
  json["weight_bytes"] = r.weight_bytes;
  if (r.baseline) json["baseline"] = TimingsJson(*r.baseline);
  return json.dump();
}

}  // namespace metattn
