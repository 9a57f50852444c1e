// Teacher-forced evaluation: negative log-likelihood of a text and what attention read for it.
//
// The text is tokenised once and cut into windows of `context` tokens (a rest is dropped); each
// window is predicted from its own start: context - 1 predictions. Runs on rank 0 while the other
// ranks Serve. Deterministic. Errors: too little text (says how many tokens there are), what Worker
// reports.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/tokenizer.h"
#include "engine/worker.h"

namespace metattn {

struct EvalOptions {
  std::int32_t context = 2048;       // tokens of a window, >= 2
  std::int64_t max_tokens = 0;       // of the text; 0: all
  RoutePolicy policy;                // of every row
  std::int32_t rows_per_step = 256;  // prefill chunk and logit rows of a step
  std::function<void(std::int64_t done, std::int64_t windows)> progress;  // may be empty
};

struct EvalReport {
  double nll = 0;           // nats per token, pooled over predictions
  std::int64_t tokens = 0;  // in windows
  std::int64_t predictions = 0;
  std::int64_t windows = 0;
  // Of (row, KV head, layer) with a far span: share of each mechanism; none when there are none.
  std::optional<std::array<double, kMechanisms>> share;
  double mixture = 0;  // of the same, share of those that got all three, weighted
  // Means over the rows that the controller decided: U, softmax(score), and what that costs.
  std::optional<double> uncertainty;
  std::optional<std::array<double, kMechanisms>> soft_share;
  std::optional<double> expected_cost;  // sum_k weight_k c_k, 1 is full attention
  double attention_bytes_ratio = 1;     // read over dense, all rows
  double attention_flops_ratio = 1;     // multiplications over dense ones, all rows
};

// What a worker must be able to take for such an evaluation.
WorkerLimits LimitsForEval(const EvalOptions& options);

absl::StatusOr<EvalReport> Evaluate(Worker& worker, std::span<const std::int32_t> tokens,
                                    const EvalOptions& options);
std::string ToJson(const EvalReport& report);

// -log softmax(logits)[target] in double.
double NegativeLogLikelihood(std::span<const float> logits, std::int32_t target);

}  // namespace metattn
