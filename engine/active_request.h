// One request while it lives in the engine: what it has generated, its text, its clock, its sink.
//
// Owned by the engine's loop and used from its thread only. Borrows the tokenizer and the observer
// (may be null). Decides when a generation is over: stop token, stop string, or max_tokens. Cost of
// a token: O(prompt + output) with penalties, else O(V) in the sampler.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "engine/metrics.h"
#include "engine/model/tokenizer.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/text_output.h"

namespace metattn {

class ActiveRequest {
 public:
  using Clock = std::chrono::steady_clock;

  struct Args {
    std::uint64_t id = 0;
    GenerationRequest request;  // has passed every check
    EventSink sink;
    std::uint64_t seed = 0;
    std::int32_t max_tokens = 0;  // what the context leaves, at least 1
    std::int64_t vocab = 0;       // V of the logits
    Clock::time_point submitted;
  };
  ActiveRequest(Args args, const Tokenizer& tokenizer, EngineObserver* observer);

  std::uint64_t id() const { return args_.id; }
  const GenerationRequest& request() const { return args_.request; }
  std::int32_t max_tokens() const { return args_.max_tokens; }
  std::optional<Clock::time_point> deadline() const { return deadline_; }
  Clock::time_point submitted() const { return args_.submitted; }
  bool scheduled() const { return scheduled_; }
  std::optional<Clock::time_point> last_token() const { return last_token_; }

  void OnScheduled(Clock::time_point now, std::int32_t cached_tokens);  // for the first time
  void OnPreempted() { ++usage_.preemptions; }
  void OnRouted(const RoutingCounts& counts) { routing_.Add(counts); }

  // The next token is the one of the largest logit, whatever the others are.
  bool TakesLargest() const;
  // Chooses the next token from a row of logits, which is changed in place. Notes nothing yet.
  GeneratedToken Choose(std::span<float> logits) const;
  // Notes the token and calls the sink. True: that was the last event.
  bool Take(GeneratedToken token, Clock::time_point now);
  // The last event, for every reason but a token's.
  void End(FinishReason reason, absl::Status status, Clock::time_point now);

 private:
  SampleContext Context() const;
  bool Stops(std::int32_t id) const;
  void Finish(GenerationEvent& event, FinishReason reason, Clock::time_point now);
  double SecondsSinceSubmission(Clock::time_point now) const;

  Args args_;
  EngineObserver* observer_;
  TextOutput text_;
  std::vector<std::int32_t> stop_ids_;
  std::vector<std::int32_t> output_;
  std::optional<Clock::time_point> deadline_;
  std::optional<Clock::time_point> last_token_;
  Usage usage_;
  RoutingCounts routing_;
  Timings timings_;
  bool scheduled_ = false;
};

}  // namespace metattn
