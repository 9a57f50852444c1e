#include "rpc/generate_output.h"

#include <algorithm>
#include <cctype>

#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"

namespace metattn {
namespace {

// FINISH_REASON_STOP -> "stop".
std::string ReasonName(v1::FinishReason reason) {
  std::string name = v1::FinishReason_Name(reason);
  const std::string prefix = "FINISH_REASON_";
  if (name.rfind(prefix, 0) == 0) name.erase(0, prefix.size());
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return name;
}

double Seconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

// Whether there was anything to decide: a context beyond the window.
bool Decided(const v1::RoutingSummary& routing) {
  return routing.full() + routing.linear() + routing.local() + routing.mixture() > 0;
}

// Most controllers never mix.
std::string MixtureText(const v1::RoutingSummary& routing) {
  if (routing.mixture() == 0) return "";
  return absl::StrFormat(", %.1f%% mixtures", 100 * routing.mixture());
}

}  // namespace

GenerateOutput::GenerateOutput(bool json, std::ostream& out, std::ostream& err)
    : json_(json), out_(out), err_(err) {}

void GenerateOutput::Add(const v1::GenerateResponse& response) {
  last_ = Clock::now();
  if (tokens_.empty() && response.tokens_size() > 0) first_ = last_;
  for (const v1::GeneratedToken& token : response.tokens()) tokens_.push_back(token.id());
  if (response.has_finish()) finish_ = response.finish();
  if (json_) {
    text_ += response.text();
  } else {
    out_ << response.text() << std::flush;
  }
}

void GenerateOutput::End() {
  const auto count = static_cast<double>(tokens_.size());
  const double first = tokens_.empty() ? 0 : Seconds(first_ - start_);
  const double decode = tokens_.size() < 2 ? 0 : Seconds(last_ - first_);
  const double rate = decode > 0 ? (count - 1) / decode : 0;
  const v1::Usage& usage = finish_.usage();
  if (json_) {
    nlohmann::json object = {{"text", text_},
                             {"token_ids", tokens_},
                             {"finish_reason", ReasonName(finish_.reason())},
                             {"stop_match", finish_.stop_match()},
                             {"seed", finish_.seed()},
                             {"prompt_tokens", usage.prompt_tokens()},
                             {"cached_tokens", usage.cached_tokens()},
                             {"generated_tokens", usage.generated_tokens()},
                             {"preemptions", usage.preemptions()},
                             {"queue_seconds", finish_.timings().queue_seconds()},
                             {"time_to_first_token_seconds", first},
                             {"decode_tokens_per_s", rate},
                             {"total_seconds", finish_.timings().total_seconds()}};
    if (Decided(finish_.routing())) {
      const v1::RoutingSummary& r = finish_.routing();
      object["routing"] = {{"full", r.full()},
                           {"linear", r.linear()},
                           {"local", r.local()},
                           {"mixture", r.mixture()},
                           {"mean_uncertainty", r.mean_uncertainty()},
                           {"attention_bytes_ratio", r.attention_bytes_ratio()}};
    }
    out_ << object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
    return;
  }
  out_ << std::endl;
  err_ << absl::StrFormat(
              "[%d prompt tokens (%d cached), %d generated, %s; first token after %.0f ms, then "
              "%.1f tokens/s; seed %u]",
              usage.prompt_tokens(), usage.cached_tokens(), usage.generated_tokens(),
              ReasonName(finish_.reason()), first * 1000, rate, finish_.seed())
       << std::endl;
  if (!Decided(finish_.routing())) return;
  const v1::RoutingSummary& r = finish_.routing();
  err_ << absl::StrFormat(
              "[attention beyond the window: %.1f%% full, %.1f%% linear, %.1f%% local%s; mean U "
              "%.3f; "
              "%.1f%% of the bytes of full attention]",
              100 * r.full(), 100 * r.linear(), 100 * r.local(), MixtureText(r),
              r.mean_uncertainty(), 100 * r.attention_bytes_ratio())
       << std::endl;
}

}  // namespace metattn
