#include "engine/active_request.h"

#include <algorithm>
#include <utility>

namespace metattn {
namespace {

constexpr double kFarAwaySeconds = 1e9;  // a deadline beyond this is none

double Seconds(ActiveRequest::Clock::duration d) {
  return std::chrono::duration<double>(d).count();
}

}  // namespace

ActiveRequest::ActiveRequest(Args args, const Tokenizer& tokenizer, EngineObserver* observer)
    : args_(std::move(args)),
      observer_(observer),
      text_(tokenizer, args_.request.special_tokens, args_.request.sampling.stop) {
  const SamplingParams& params = args_.request.sampling;
  stop_ids_ = params.stop_token_ids;
  if (!params.ignore_eos) {
    stop_ids_.insert(stop_ids_.end(), tokenizer.stop_ids().begin(), tokenizer.stop_ids().end());
  }
  std::erase_if(stop_ids_, [&](std::int32_t id) { return id < 0 || id >= args_.vocab; });
  if (args_.request.deadline_s && *args_.request.deadline_s < kFarAwaySeconds) {
    const double seconds = std::max(0.0, *args_.request.deadline_s);
    deadline_ = args_.submitted +
                std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  }
  usage_.prompt_tokens = static_cast<std::int32_t>(args_.request.prompt.size());
}

double ActiveRequest::SecondsSinceSubmission(Clock::time_point now) const {
  return Seconds(now - args_.submitted);
}

void ActiveRequest::OnScheduled(Clock::time_point now, std::int32_t cached_tokens) {
  scheduled_ = true;
  timings_.queue = SecondsSinceSubmission(now);
  usage_.cached_tokens = cached_tokens;
}

SampleContext ActiveRequest::Context() const {
  const SamplingParams& params = args_.request.sampling;
  SampleContext context;
  context.prompt = args_.request.prompt;
  context.output = output_;
  if (static_cast<std::int32_t>(output_.size()) < params.min_tokens) context.forbidden = stop_ids_;
  context.seed = args_.seed;
  context.position = args_.request.prompt.size() + output_.size();
  return context;
}

bool ActiveRequest::TakesLargest() const {
  return metattn::TakesLargest(args_.request.sampling, Context());
}

GeneratedToken ActiveRequest::Choose(std::span<float> logits) const {
  return Sample(logits, args_.request.sampling, Context());
}

bool ActiveRequest::Stops(std::int32_t id) const {
  return std::find(stop_ids_.begin(), stop_ids_.end(), id) != stop_ids_.end();
}

bool ActiveRequest::Take(GeneratedToken token, Clock::time_point now) {
  const std::int32_t id = token.id;
  output_.push_back(id);
  if (!last_token_) timings_.time_to_first_token = SecondsSinceSubmission(now);
  if (observer_ != nullptr) {
    if (!last_token_) {
      observer_->OnFirstToken(timings_.time_to_first_token);
    } else {
      observer_->OnInterToken(Seconds(now - *last_token_));
    }
  }
  last_token_ = now;

  GenerationEvent event;
  event.seed = args_.seed;
  event.tokens.push_back(std::move(token));
  const auto generated = static_cast<std::int32_t>(output_.size());
  // A stop token shows in `tokens`, its text is not part of the output. Before min_tokens it can
  // only come when nothing else was possible, and does not end anything.
  const bool stop_token = generated > args_.request.sampling.min_tokens && Stops(id);
  if (!stop_token) event.text = text_.Push(id);
  if (!stop_token && !text_.matched() && generated < args_.max_tokens) {
    args_.sink(event);
    return false;
  }
  Finish(event, stop_token || text_.matched() ? FinishReason::kStop : FinishReason::kLength, now);
  return true;
}

void ActiveRequest::End(FinishReason reason, absl::Status status, Clock::time_point now) {
  GenerationEvent event;
  event.seed = args_.seed;
  event.status = std::move(status);
  Finish(event, reason, now);
}

void ActiveRequest::Finish(GenerationEvent& event, FinishReason reason, Clock::time_point now) {
  event.text += text_.Finish();
  // The last bytes may complete a stop string (an unfinished character becomes U+FFFD).
  if (text_.matched()) {
    event.stop_match = text_.match();
    if (reason == FinishReason::kLength) reason = FinishReason::kStop;
  }
  event.finish = reason;
  usage_.generated_tokens = static_cast<std::int32_t>(output_.size());
  timings_.total = SecondsSinceSubmission(now);
  if (!scheduled_) timings_.queue = timings_.total;
  event.usage = usage_;
  event.routing = routing_;
  event.timings = timings_;
  if (observer_ != nullptr) observer_->OnFinish(event);
  args_.sink(event);
}

}  // namespace metattn
