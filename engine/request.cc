#include "engine/request.h"

#include <cmath>
#include <cstddef>
#include <set>
#include <string_view>

#include "absl/strings/str_format.h"
#include "engine/model/utf8.h"

namespace metattn {
namespace {

constexpr std::size_t kMaxStopStrings = 16;
constexpr std::size_t kMaxStopBytes = 1024;
constexpr std::size_t kMaxStopIds = 256;
constexpr std::size_t kMaxBiases = 1024;
constexpr int kMaxTopLogprobs = 20;

// `allowed` completes the sentence "must be ...".
absl::Status Refuse(std::string_view field, double value, const char* allowed) {
  return absl::InvalidArgumentError(
      absl::StrFormat("%s is %g, must be %s", std::string(field), value, allowed));
}

absl::Status CheckId(const std::string& field, std::int32_t id, std::int64_t vocab) {
  if (id >= 0 && id < vocab) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrFormat("%s holds token id %d, the vocabulary has ids 0 to %d", field, id,
                      static_cast<long long>(vocab - 1)));
}

// Comparisons are written so that NaN fails them.
absl::Status CheckNumbers(const SamplingParams& p) {
  if (!(p.temperature >= 0 && std::isfinite(p.temperature))) {
    return Refuse("temperature", p.temperature, "a finite number >= 0");
  }
  if (p.top_k < 0) return Refuse("top_k", p.top_k, ">= 0 (0: off)");
  if (!(p.top_p > 0 && p.top_p <= 1)) return Refuse("top_p", p.top_p, "above 0 and at most 1");
  if (!(p.min_p >= 0 && p.min_p <= 1)) return Refuse("min_p", p.min_p, "within [0, 1]");
  if (!(p.repetition_penalty > 0 && std::isfinite(p.repetition_penalty))) {
    return Refuse("repetition_penalty", p.repetition_penalty, "a finite number above 0");
  }
  if (!(p.presence_penalty >= -2 && p.presence_penalty <= 2)) {
    return Refuse("presence_penalty", p.presence_penalty, "within [-2, 2]");
  }
  if (!(p.frequency_penalty >= -2 && p.frequency_penalty <= 2)) {
    return Refuse("frequency_penalty", p.frequency_penalty, "within [-2, 2]");
  }
  if (p.max_tokens < 0) return Refuse("max_tokens", p.max_tokens, ">= 0 (0: to the context's end)");
  if (p.min_tokens < 0) return Refuse("min_tokens", p.min_tokens, ">= 0");
  if (p.max_tokens > 0 && p.min_tokens > p.max_tokens) {
    return Refuse("min_tokens", p.min_tokens, "at most max_tokens");
  }
  if (p.logprobs < -1 || p.logprobs > kMaxTopLogprobs) {
    return Refuse("logprobs", p.logprobs, "within [-1, 20] (-1: none)");
  }
  return absl::OkStatus();
}

absl::Status CheckStops(const SamplingParams& p, std::int64_t vocab) {
  if (p.stop.size() > kMaxStopStrings) {
    return Refuse("the number of stop strings (stop)", static_cast<double>(p.stop.size()),
                  "at most 16");
  }
  for (std::size_t i = 0; i < p.stop.size(); ++i) {
    const std::string field = absl::StrFormat("stop[%d]", i);
    if (p.stop[i].empty()) return absl::InvalidArgumentError(field + " is empty");
    if (p.stop[i].size() > kMaxStopBytes) {
      return Refuse("the length of " + field, static_cast<double>(p.stop[i].size()),
                    "at most 1024 bytes");
    }
    if (utf8::FirstInvalid(p.stop[i]) != std::string_view::npos)
      return absl::InvalidArgumentError(field + " is not valid UTF-8");
  }
  if (p.stop_token_ids.size() > kMaxStopIds) {
    return Refuse("the number of stop_token_ids", static_cast<double>(p.stop_token_ids.size()),
                  "at most 256");
  }
  for (std::size_t i = 0; i < p.stop_token_ids.size(); ++i) {
    absl::Status status =
        CheckId(absl::StrFormat("stop_token_ids[%d]", i), p.stop_token_ids[i], vocab);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckBiases(const SamplingParams& p, std::int64_t vocab) {
  if (p.logit_bias.size() > kMaxBiases) {
    return Refuse("the number of logit_bias entries", static_cast<double>(p.logit_bias.size()),
                  "at most 1024");
  }
  std::set<std::int32_t> seen;
  for (const auto& [id, bias] : p.logit_bias) {
    absl::Status status = CheckId("logit_bias", id, vocab);
    if (!status.ok()) return status;
    if (!std::isfinite(bias)) {
      return Refuse(absl::StrFormat("logit_bias of token id %d", id), bias, "a finite number");
    }
    if (!seen.insert(id).second) {
      return absl::InvalidArgumentError(absl::StrFormat("logit_bias names token id %d twice", id));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const SamplingParams& params, std::int64_t vocab) {
  absl::Status status = CheckNumbers(params);
  if (status.ok()) status = CheckStops(params, vocab);
  if (status.ok()) status = CheckBiases(params, vocab);
  return status;
}

}  // namespace metattn
