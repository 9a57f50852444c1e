#include "engine/eval.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace metattn {
namespace {

struct Sums {
  double nll = 0;
  RoutingCounts routing;
};

absl::Status RunWindow(Worker& worker, std::span<const std::int32_t> window,
                       const EvalOptions& options, std::uint64_t id, Sums& sums) {
  const auto length = static_cast<std::int32_t>(window.size());
  std::vector<std::int32_t> blocks((window.size() + kBlockTokens - 1) / kBlockTokens);
  std::iota(blocks.begin(), blocks.end(), 0);
  for (std::int32_t begin = 0; begin < length; begin += options.rows_per_step) {
    const std::int32_t rows = std::min(options.rows_per_step, length - begin);
    StepPlan plan;
    plan.step = id * 100000 + begin;
    plan.sequences.push_back({id, begin, rows, blocks, 0, begin - 1});
    plan.tokens.assign(window.begin() + begin, window.begin() + begin + rows);
    plan.policy.assign(static_cast<std::size_t>(rows), options.policy);
    const std::int32_t predicted =
        std::min(rows, length - 1 - begin);  // the last token predicts nothing
    plan.logit_rows.resize(predicted);
    std::iota(plan.logit_rows.begin(), plan.logit_rows.end(), 0);
    absl::StatusOr<StepOutput> output = worker.Step(plan);
    if (!output.ok()) return output.status();
    sums.routing.Add(output->routing.Total());
    if (predicted == 0) continue;
    const std::size_t vocab = output->logits.size() / predicted;
    for (std::int32_t i = 0; i < predicted; ++i) {
      sums.nll +=
          NegativeLogLikelihood({output->logits.data() + i * vocab, vocab}, window[begin + i + 1]);
    }
  }
  return absl::OkStatus();
}

}  // namespace

double NegativeLogLikelihood(std::span<const float> logits, std::int32_t target) {
  const float max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float x : logits) sum += std::exp(static_cast<double>(x) - max);
  return std::log(sum) + max - logits[target];
}

WorkerLimits LimitsForEval(const EvalOptions& options) {
  WorkerLimits limits;
  limits.max_batch_tokens = options.rows_per_step;
  limits.max_logit_rows = options.rows_per_step;
  limits.max_sequences = 1;
  limits.max_context = options.context;
  limits.min_blocks = (options.context + kBlockTokens - 1) / kBlockTokens;
  limits.max_blocks = limits.min_blocks;
  return limits;
}

absl::StatusOr<EvalReport> Evaluate(Worker& worker, std::span<const std::int32_t> tokens,
                                    const EvalOptions& options) {
  if (options.context < 2)
    return absl::InvalidArgumentError("--context: at least 2 tokens are needed");
  std::int64_t count = static_cast<std::int64_t>(tokens.size());
  if (options.max_tokens > 0) count = std::min(count, options.max_tokens);
  const std::int64_t windows = count / options.context;
  if (windows == 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--text: %d tokens, one window of --context %d does not fit", count, options.context));
  }
  Sums sums;
  for (std::int64_t i = 0; i < windows; ++i) {
    const auto window = tokens.subspan(i * options.context, options.context);
    if (absl::Status s = RunWindow(worker, window, options, i + 1, sums); !s.ok()) return s;
    if (options.progress) options.progress(i + 1, windows);
  }
  EvalReport report;
  report.windows = windows;
  report.tokens = windows * options.context;
  report.predictions = windows * (options.context - 1);
  report.nll = sums.nll / static_cast<double>(report.predictions);
  const RoutingCounts& routing = sums.routing;
  if (routing.eligible() > 0) {
    report.share.emplace();
    for (std::size_t k = 0; k < routing.rows.size(); ++k) {
      (*report.share)[k] =
          static_cast<double>(routing.rows[k]) / static_cast<double>(routing.eligible());
    }
    report.mixture =
        static_cast<double>(routing.mixture_rows) / static_cast<double>(routing.eligible());
  }
  if (routing.routed_rows > 0) {
    const auto decided = static_cast<double>(routing.routed_rows);
    report.uncertainty = routing.uncertainty / decided;
    report.soft_share.emplace();
    for (std::size_t k = 0; k < routing.weights.size(); ++k) {
      (*report.soft_share)[k] = routing.weights[k] / decided;
    }
    report.expected_cost = routing.expected_cost / decided;
  }
  if (routing.bytes_dense > 0) {
    report.attention_bytes_ratio =
        static_cast<double>(routing.bytes_read) / static_cast<double>(routing.bytes_dense);
    report.attention_flops_ratio =
        static_cast<double>(routing.flops) / static_cast<double>(routing.flops_dense);
  }
  return report;
}

namespace {

nlohmann::json ByMechanism(const std::optional<std::array<double, kMechanisms>>& values) {
  if (!values) return nullptr;
  return {{"full", (*values)[0]}, {"linear", (*values)[1]}, {"local", (*values)[2]}};
}

nlohmann::json OrNull(const std::optional<double>& value) {
  return value ? nlohmann::json(*value) : nlohmann::json(nullptr);
}

}  // namespace

std::string ToJson(const EvalReport& report) {
  nlohmann::json json = {{"nll", report.nll},
                         {"tokens", report.tokens},
                         {"share", ByMechanism(report.share)},
                         {"mixture", report.mixture},
                         {"uncertainty", OrNull(report.uncertainty)},
                         {"soft_share", ByMechanism(report.soft_share)},
                         {"expected_cost", OrNull(report.expected_cost)},
                         {"attention_bytes_ratio", report.attention_bytes_ratio},
                         {"attention_flops_ratio", report.attention_flops_ratio},
                         {"predictions", report.predictions},
                         {"windows", report.windows}};
  return json.dump();
}

}  // namespace metattn
