#include "engine/engine_loop.h"

#include <cstddef>
#include <vector>

#include "absl/strings/str_format.h"

namespace metattn {

EngineLoop::EngineLoop(const SchedulerOptions& options, std::int64_t vocab, Worker& worker,
                       EngineObserver* observer)
    : scheduler_(options), vocab_(vocab), worker_(worker), observer_(observer) {}

void EngineLoop::Accept(std::unique_ptr<ActiveRequest> request) {
  SequenceSpec spec;
  spec.id = request->id();
  spec.prompt = request->request().prompt;
  spec.max_tokens = request->max_tokens();
  spec.priority = request->request().priority;
  spec.route = request->request().route;
  absl::Status status = scheduler_.Add(std::move(spec));
  if (!status.ok()) {  // Submit has checked all of it; should it disagree, the client hears why
    request->End(FinishReason::kError, std::move(status), Clock::now());
    return;
  }
  if (request->deadline()) deadlines_.emplace(*request->deadline(), request->id());
  requests_.emplace(request->id(), std::move(request));
}

void EngineLoop::Forget(std::uint64_t id) {
  const auto found = requests_.find(id);
  if (found->second->deadline()) deadlines_.erase({*found->second->deadline(), id});
  scheduler_.Remove(id);
  requests_.erase(found);
}

void EngineLoop::End(std::uint64_t id, FinishReason reason, absl::Status status) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  found->second->End(reason, std::move(status), Clock::now());
  Forget(id);
}

void EngineLoop::Cancel(std::uint64_t id) {
  End(id, FinishReason::kCancelled, absl::CancelledError("the request was cancelled"));
}

void EngineLoop::ExpireDeadlines(Clock::time_point now) {
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const std::uint64_t id = deadlines_.begin()->second;
    const double seconds = *requests_.at(id)->request().deadline_s;
    End(id, FinishReason::kDeadline,
        absl::DeadlineExceededError(
            absl::StrFormat("deadline_s of %g s passed before the request was done", seconds)));
  }
}

void EngineLoop::EndAll(FinishReason reason, const absl::Status& status) {
  auto requests = std::move(requests_);
  requests_.clear();
  deadlines_.clear();
  for (auto& [id, request] : requests) {
    request->End(reason, status, Clock::now());
    if (!failed_) scheduler_.Remove(id);  // after a failed step its plan is still outstanding
  }
}

void EngineLoop::NoteSchedule(const ScheduledStep& step) {
  const auto now = Clock::now();
  for (const std::uint64_t id : step.first_scheduled) {
    requests_.at(id)->OnScheduled(now, scheduler_.cached_tokens(id));
  }
  for (const std::uint64_t id : step.preempted) {
    requests_.at(id)->OnPreempted();
    if (observer_ != nullptr) observer_->OnPreemption();
  }
}

absl::Status EngineLoop::Step() {
  auto step = scheduler_.Next();
  if (!step) return absl::OkStatus();
  NoteSchedule(*step);
  failed_ = true;  // until it has gone well
  absl::StatusOr<StepOutput> output = worker_.Step(step->plan);
  if (!output.ok()) return output.status();
  const std::size_t wanted = step->samples.size() * static_cast<std::size_t>(vocab_);
  if (output->logits.size() != wanted) {
    return absl::InternalError(absl::StrFormat("the step returned %d logits instead of %d x %d",
                                               output->logits.size(), step->samples.size(),
                                               static_cast<long long>(vocab_)));
  }
  failed_ = false;
  ++steps_;
  if (observer_ != nullptr) {
    observer_->OnStep(output->per_rank, static_cast<int>(step->plan.tokens.size()));
  }
  Deliver(*step, output->logits);
  return absl::OkStatus();
}

void EngineLoop::Deliver(const ScheduledStep& step, std::span<float> logits) {
  std::vector<GeneratedToken> chosen;
  std::vector<std::int32_t> ids;
  chosen.reserve(step.samples.size());
  ids.reserve(step.samples.size());
  const auto vocab = static_cast<std::size_t>(vocab_);
  for (std::size_t i = 0; i < step.samples.size(); ++i) {
    chosen.push_back(requests_.at(step.samples[i])->Choose(logits.subspan(i * vocab, vocab)));
    ids.push_back(chosen.back().id);
  }
  scheduler_.Complete(ids);
  const auto now = Clock::now();
  for (std::size_t i = 0; i < step.samples.size(); ++i) {
    const std::uint64_t id = step.samples[i];
    if (requests_.at(id)->Take(std::move(chosen[i]), now)) Forget(id);
  }
}

}  // namespace metattn
