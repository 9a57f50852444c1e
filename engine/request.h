// What a client asks for and what it gets back, independent of any wire format. Plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/model/routing_counts.h"
#include "engine/routing_options.h"

namespace metattn {

// Names and meanings follow vLLM's SamplingParams. Order: bias and penalties on logits,
// temperature, min-p, top-k, renormalise, top-p, draw. Temperature 0 is greedy (ties to the lower
// id).
struct SamplingParams {
  double temperature = 0.0;
  std::int32_t top_k = 0;                                   // 0: off
  double top_p = 1.0;                                       // (0, 1]
  double min_p = 0.0;                                       // [0, 1]
  double repetition_penalty = 1.0;                          // > 0; prompt and output
  double presence_penalty = 0.0;                            // [-2, 2]; output only
  double frequency_penalty = 0.0;                           // [-2, 2]; output only
  std::vector<std::pair<std::int32_t, double>> logit_bias;  // (id, added), ids unique
  std::optional<std::uint64_t> seed;  // none: drawn at admission and reported back
  std::vector<std::string> stop;      // UTF-8, non-empty; generation ends before the first match
  std::vector<std::int32_t> stop_token_ids;
  bool ignore_eos = false;
  std::int32_t max_tokens = 0;  // 0: to the end of the context
  std::int32_t min_tokens = 0;  // no stop token before
  std::int32_t logprobs = -1;   // -1: none; n: the chosen token's and the n most likely (n <= 20)
};

struct GenerationRequest {
  std::string request_id;            // for logs; the engine has its own id
  std::vector<std::int32_t> prompt;  // token ids, not empty
  SamplingParams sampling;
  RouteOptions wish;          // what is not set follows the server's policy, also when that changes
  std::int32_t priority = 0;  // lower is served first; equal: first come, first served
  std::optional<double> deadline_s;  // seconds from submission; past it: DEADLINE_EXCEEDED
  bool special_tokens = false;       // show special tokens in the text
};

struct TokenLogprob {
  std::int32_t id = 0;
  float logprob = 0;  // natural log, of the distribution before temperature and truncation
};

struct GeneratedToken {
  std::int32_t id = 0;
  std::optional<float> logprob;
  std::vector<TokenLogprob> top;  // most likely first
};

enum class FinishReason { kNone, kStop, kLength, kCancelled, kDeadline, kError };

struct Usage {
  std::int32_t prompt_tokens = 0;
  std::int32_t cached_tokens = 0;  // of the prompt, taken from reused blocks
  std::int32_t generated_tokens = 0;
  std::int32_t preemptions = 0;
};

struct Timings {                   // seconds
  double queue = 0;                // submission to first scheduled
  double time_to_first_token = 0;  // from submission
  double total = 0;
};

// One call of a request's sink. Text may lag behind tokens (whole characters, possible stop
// strings); all text of a request concatenated is its output. The last event has finish != kNone
// and comes exactly once.
struct GenerationEvent {
  std::vector<GeneratedToken> tokens;
  std::string text;
  FinishReason finish = FinishReason::kNone;
  std::string stop_match;  // the stop string that ended it, if one did
  absl::Status status;     // why, for kCancelled, kDeadline, kError
  Usage usage;             // filled in the last event
  RoutingCounts routing;   // likewise: what attention did for this request
  Timings timings;
  std::uint64_t seed = 0;
};

// INVALID_ARGUMENT naming the field: NaN, out of range, ids outside the vocabulary, too many stop
// strings.
[[nodiscard]] absl::Status Validate(const SamplingParams& params, std::int64_t vocab);

}  // namespace metattn
