#include "tests/engine/engine_fakes.h"

#include <algorithm>
#include <chrono>

#include "engine/sampler.h"

namespace metattn {

std::vector<float> OracleWorker::Logits(const std::vector<std::int32_t>& tokens) {
  std::uint64_t x = 1;
  for (const std::int32_t token : tokens) x = PlanChecker::Extend(x, token);
  std::vector<float> logits(static_cast<std::size_t>(kFakeVocab));
  for (float& v : logits) {
    x = PlanChecker::Extend(x, 17);
    v = static_cast<float>(x >> 40) * 0x1p-21f;  // [0, 8)
  }
  logits[kFakeEos] -= 4;  // generations have some length
  return logits;
}

absl::StatusOr<StepOutput> OracleWorker::Step(const StepPlan& plan) {
  {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [this] { return !closed_; });
  }
  if (on_step) on_step(plan);
  const int step = steps++;
  if (step == fail_at_step) return absl::UnavailableError("rank 1 is gone");
  rows += static_cast<int>(plan.tokens.size());
  largest_batch = std::max(largest_batch.load(), static_cast<int>(plan.sequences.size()));
  std::string wrong = checker_.Check(plan);
  if (!wrong.empty()) {
    if (error.empty()) error = wrong;
    return absl::InvalidArgumentError(wrong);
  }
  StepOutput output;
  for (const auto& context : checker_.contexts()) {
    const std::vector<float> row = Logits(context);
    output.logits.insert(output.logits.end(), row.begin(), row.end());
  }
  for (const auto& context : checker_.best_contexts()) {
    const std::vector<float> row = Logits(context);
    const auto best = std::max_element(row.begin(), row.end());
    output.best.push_back(static_cast<std::int32_t>(best - row.begin()));
  }
  output.per_rank.resize(1);
  output.per_rank[0].step = plan.step;
  output.routing.layers.resize(1);
  output.routing.sequences.resize(plan.sequences.size());
  for (std::size_t i = 0; i < plan.sequences.size(); ++i) {  // what a request must get summed up
    output.routing.sequences[i].bytes_dense = plan.sequences[i].rows;
  }
  output.routing.layers[0].bytes_dense = static_cast<std::int64_t>(plan.tokens.size());
  output.rank_routing = {output.routing.Total()};
  return output;
}

void OracleWorker::CloseGate() {
  std::lock_guard lock(mutex_);
  closed_ = true;
}

void OracleWorker::OpenGate() {
  {
    std::lock_guard lock(mutex_);
    closed_ = false;
  }
  opened_.notify_all();
}

absl::StatusOr<std::vector<std::int32_t>> ByteTokenizer::Encode(std::string_view text,
                                                                const EncodeOptions&) const {
  std::vector<std::int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<std::uint8_t>(c));
  return ids;
}

std::string ByteTokenizer::TokenBytes(std::int32_t id, bool special) const {
  if (id >= 0 && id < 256) return std::string(1, static_cast<char>(id));
  if (id == kFakeEos) return special ? "<eos>" : "";
  const auto word = static_cast<std::size_t>(id - 256);
  return id >= 256 && word < words_.size() ? words_[word] : "";
}

absl::StatusOr<std::string> ByteTokenizer::Decode(std::span<const std::int32_t> ids,
                                                  bool special) const {
  std::string text;
  for (const std::int32_t id : ids) text += TokenBytes(id, special);
  return text;
}

EventSink Recorder::Sink() {
  return [this](const GenerationEvent& event) {
    std::lock_guard lock(mutex_);
    if (done_) violation_ = "an event after the last one";
    events_.push_back(event);
    done_ = event.finish != FinishReason::kNone;
    changed_.notify_all();
  };
}

bool Recorder::WaitDone(double seconds) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return done_; });
}

bool Recorder::WaitTokens(std::size_t count, double seconds) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds), [&] {
    std::size_t tokens = 0;
    for (const auto& event : events_) tokens += event.tokens.size();
    return done_ || tokens >= count;
  });
}

std::vector<std::int32_t> Recorder::tokens() const {
  std::lock_guard lock(mutex_);
  std::vector<std::int32_t> ids;
  for (const auto& event : events_) {
    for (const auto& token : event.tokens) ids.push_back(token.id);
  }
  return ids;
}

std::string Recorder::text() const {
  std::lock_guard lock(mutex_);
  std::string text;
  for (const auto& event : events_) text += event.text;
  return text;
}

GenerationEvent Recorder::last() const {
  std::lock_guard lock(mutex_);
  return events_.empty() ? GenerationEvent{} : events_.back();
}

std::vector<GenerationEvent> Recorder::events() const {
  std::lock_guard lock(mutex_);
  return events_;
}

std::string Recorder::violation() const {
  std::lock_guard lock(mutex_);
  return violation_;
}

std::vector<std::int32_t> Replay(const GenerationRequest& request, std::int32_t max_tokens,
                                 std::uint64_t seed) {
  const SamplingParams& params = request.sampling;
  std::vector<std::int32_t> stops = params.stop_token_ids;
  if (!params.ignore_eos) stops.push_back(kFakeEos);
  std::vector<std::int32_t> tokens = request.prompt, output;
  while (static_cast<std::int32_t>(output.size()) < max_tokens) {
    std::vector<float> logits = OracleWorker::Logits(tokens);
    SampleContext context;
    context.prompt = request.prompt;
    context.output = output;
    if (static_cast<std::int32_t>(output.size()) < params.min_tokens) context.forbidden = stops;
    context.seed = seed;
    context.position = tokens.size();
    const std::int32_t id = Sample(logits, params, context).id;
    tokens.push_back(id);
    output.push_back(id);
    if (std::find(stops.begin(), stops.end(), id) != stops.end()) break;
  }
  return output;
}

}  // namespace metattn
