#include "engine/engine_loop.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/shadow_rows.h"

namespace metattn {

EngineLoop::EngineLoop(const Args& args, Worker& worker, EngineObserver* observer)
    : scheduler_(args.scheduler),
      vocab_(args.vocab),
      shadow_rate_(args.shadow_rate),
      worker_(worker),
      observer_(observer),
      control_(args.routing, args.cost_weight_levels, args.elastic) {}

double EngineLoop::SecondsAt(Clock::time_point now) const {
  return std::chrono::duration<double>(now - epoch_).count();
}

void EngineLoop::Accept(std::unique_ptr<ActiveRequest> request) {
  SequenceSpec spec;
  spec.id = request->id();
  spec.prompt = request->request().prompt;
  spec.max_tokens = request->max_tokens();
  spec.priority = request->request().priority;
  spec.policy = control_.Effective(request->request().wish);
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

// At the border between two steps: what the next tokens of everybody are computed under.
void EngineLoop::ApplyRouting(Clock::time_point now) {
  // In order of submission: those that run come first, so the search is short.
  const auto oldest = std::find_if(requests_.begin(), requests_.end(),
                                   [](const auto& entry) { return !entry.second->scheduled(); });
  const double now_s = SecondsAt(now);
  control_.Observe(now_s,
                   oldest == requests_.end() ? 0 : now_s - SecondsAt(oldest->second->submitted()));
  const bool changed = control_.TakeChanged(), forced = control_.policy().force_full;
  if (!changed && !forced) return;
  for (const auto& [id, request] : requests_) {
    if (changed) scheduler_.SetPolicy(id, control_.Effective(request->request().wish));
    if (forced) scheduler_.ForgetPolicies(id);  // preempted work too is computed again in full
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

// Of rows whose largest logit decides, ranks send no more than that.
void EngineLoop::PickBestRows(ScheduledStep& step) const {
  std::vector<std::int32_t> logit_rows;
  for (std::size_t i = 0; i < step.samples.size(); ++i) {
    const bool best = requests_.at(step.samples[i])->TakesLargest();
    (best ? step.plan.best_rows : logit_rows).push_back(step.plan.logit_rows[i]);
  }
  step.plan.logit_rows = std::move(logit_rows);
}

absl::Status EngineLoop::CheckOutput(const StepPlan& plan, const StepOutput& output) const {
  const std::size_t wanted = plan.logit_rows.size() * static_cast<std::size_t>(vocab_);
  if (output.logits.size() == wanted && output.best.size() == plan.best_rows.size()) {
    return absl::OkStatus();
  }
  return absl::InternalError(absl::StrFormat(
      "the step returned %d logits instead of %d x %d, and %d best tokens instead of %d",
      output.logits.size(), plan.logit_rows.size(), static_cast<long long>(vocab_),
      output.best.size(), plan.best_rows.size()));
}

absl::Status EngineLoop::Step() {
  const auto now = Clock::now();
  if (requests_.empty()) control_.ObserveTokens(SecondsAt(now), 0);
  ApplyRouting(now);
  auto step = scheduler_.Next();
  if (!step) return absl::OkStatus();
  NoteSchedule(*step);
  PickBestRows(*step);
  if (shadow_rate_ > 0) PickShadowRows(shadow_rate_, kMaxShadowRows, step->plan);
  failed_ = true;  // until it has gone well
  absl::StatusOr<StepOutput> output = worker_.Step(step->plan);
  if (!output.ok()) return output.status();
  if (absl::Status status = CheckOutput(step->plan, *output); !status.ok()) return status;
  failed_ = false;
  ++steps_;
  if (observer_ != nullptr) {
    observer_->OnStep(*output, static_cast<int>(step->plan.tokens.size()));
  }
  history_.Add(SecondsAt(Clock::now()), output->routing);
  for (std::size_t i = 0; i < step->plan.sequences.size(); ++i) {
    requests_.at(step->plan.sequences[i].id)->OnRouted(output->routing.sequences[i]);
  }
  Deliver(*step, *output);
  return absl::OkStatus();
}

void EngineLoop::Deliver(const ScheduledStep& step, StepOutput& output) {
  std::vector<GeneratedToken> chosen;
  std::vector<std::int32_t> ids;
  chosen.reserve(step.samples.size());
  ids.reserve(step.samples.size());
  std::span<float> logits = output.logits;
  std::span<const std::int32_t> best = output.best;
  for (const std::uint64_t id : step.samples) {
    const ActiveRequest& request = *requests_.at(id);
    if (request.TakesLargest()) {
      chosen.push_back({.id = best.front()});
      best = best.subspan(1);
    } else {
      const auto vocab = static_cast<std::size_t>(vocab_);
      chosen.push_back(request.Choose(logits.first(vocab)));
      logits = logits.subspan(vocab);
    }
    ids.push_back(chosen.back().id);
  }
  scheduler_.Complete(ids);
  const auto now = Clock::now();
  double waited_s = 0;  // between tokens, summed
  int followers = 0;    // tokens that are not a request's first
  for (std::size_t i = 0; i < step.samples.size(); ++i) {
    const std::uint64_t id = step.samples[i];
    if (const auto last = requests_.at(id)->last_token()) {
      waited_s += std::chrono::duration<double>(now - *last).count();
      ++followers;
    }
    if (requests_.at(id)->Take(std::move(chosen[i]), now)) Forget(id);
  }
  control_.ObserveTokens(SecondsAt(now), followers > 0 ? waited_s / followers : 0);
}

}  // namespace metattn
