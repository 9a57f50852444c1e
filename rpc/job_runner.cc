#include "rpc/job_runner.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "rpc/convert.h"
#include "rpc/job_records.h"
#include "rpc/job_replay.h"
#include "spdlog/spdlog.h"

namespace metattn {
namespace {

using Clock = std::chrono::steady_clock;

// A job that has not ended.
struct Live {
  StoredJob job;
  GenerationRequest request;
  std::optional<std::uint64_t> engine_id;
  bool in_engine = false;
  bool cancelled = false;     // a client asked
  std::int64_t produced = 0;  // tokens of this run
  JobReplay replay;           // active while this run repeats what an earlier one stored
};

struct Event {
  std::string job;
  GenerationEvent event;
};

class Runner final : public JobRunner {
 public:
  Runner(const JobRunnerOptions& options, JobStore* store,
         std::shared_ptr<const ServedModel> served)
      : options_(options), store_(store), served_(std::move(served)) {}

  ~Runner() override {
    {
      std::lock_guard lock(inbox_->mutex);
      inbox_->stop = true;
    }
    inbox_->wake.notify_all();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Start() {
    auto unfinished = store_->Unfinished();
    if (!unfinished.ok()) return unfinished.status();
    for (StoredJob& job : *unfinished) {
      if (auto s = TakeUp(std::move(job)); !s.ok()) return s;
    }
    if (!live_.empty()) spdlog::info("{} unfinished jobs taken up from the store", live_.size());
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  absl::StatusOr<v1::Job> Submit(const v1::SubmitJobRequest& submit) override {
    if (submit.idempotency_key().size() > kMaxIdempotencyKeyBytes) {
      return absl::InvalidArgumentError(absl::StrFormat("idempotency_key: %d bytes, at most %d",
                                                        submit.idempotency_key().size(),
                                                        kMaxIdempotencyKeyBytes));
    }
    if (!submit.has_request()) return absl::InvalidArgumentError("request: is missing");
    v1::GenerateRequest wire = submit.request();
    if (wire.model().empty()) wire.set_model(served_->name);
    if (!submit.idempotency_key().empty()) {
      auto known = FindSame(*store_, submit.idempotency_key(), wire);
      if (!known.ok()) return known.status();
      if (known->has_value()) return Get((*known)->id);
    }
    auto request = ToEngine(wire, *served_);
    if (!request.ok()) {
      return absl::Status(request.status().code(),
                          absl::StrCat("request.", request.status().message()));
    }
    Live live;
    live.job = NewJob(submit.idempotency_key(), wire);
    live.request = *std::move(request);
    live.request.sampling.seed = live.job.seed;
    return Accept(std::move(live), wire);
  }

  absl::StatusOr<v1::Job> Get(const std::string& id) const override { return ReadJob(*store_, id); }

  absl::StatusOr<v1::Job> Cancel(const std::string& id) override {
    std::optional<std::uint64_t> engine_id;
    {
      std::lock_guard lock(mutex_);
      if (auto it = live_.find(id); it != live_.end()) {
        it->second.cancelled = true;
        engine_id = it->second.engine_id;
      }
    }
    if (engine_id.has_value()) served_->engine->Cancel(*engine_id);
    Wake();
    return Get(id);
  }

  absl::StatusOr<JobProgress> Read(const std::string& id, std::int64_t offset,
                                   std::int64_t after) const override {
    constexpr int kChunks = 256;
    JobProgress progress;
    auto job = store_->Get(id);  // first: an end is stored with or after the last chunk
    if (!job.ok()) return job.status();
    auto chunks = store_->Read(id, offset, after, kChunks);
    if (!chunks.ok()) return chunks.status();
    progress.ended = IsEnded(job->status) && static_cast<int>(chunks->size()) < kChunks;
    progress.chunks = *std::move(chunks);
    return progress;
  }

  std::uint64_t Subscribe(const std::string& id, std::function<void()> notify) override {
    std::lock_guard lock(watch_mutex_);
    watchers_[++next_watcher_] = {id, std::move(notify)};
    return next_watcher_;
  }

  void Unsubscribe(std::uint64_t handle) override {
    std::lock_guard lock(watch_mutex_);
    watchers_.erase(handle);
  }

  void Drain() override {
    std::lock_guard lock(mutex_);
    draining_ = true;
  }

  int waiting() const override {
    std::lock_guard lock(mutex_);
    return static_cast<int>(live_.size()) - in_engine_;
  }
  int running() const override {
    std::lock_guard lock(mutex_);
    return in_engine_;
  }

 private:
  // What the engine's thread may touch; shared with the sinks, which may outlive the runner.
  struct Inbox {
    std::mutex mutex;
    std::condition_variable wake;
    std::deque<Event> events;
    bool poked = false;
    bool stop = false;
  };
  struct Watcher {
    std::string job;
    std::function<void()> notify;
  };

  void Wake() {
    {
      std::lock_guard lock(inbox_->mutex);
      inbox_->poked = true;
    }
    inbox_->wake.notify_one();
  }

  absl::StatusOr<v1::Job> Accept(Live live, const v1::GenerateRequest& wire) {
    const std::string id = live.job.id;
    {
      std::lock_guard lock(mutex_);
      if (draining_) return absl::UnavailableError("the server is draining");
      if (static_cast<int>(live_.size()) + accepting_ >= options_.max_waiting) {
        return absl::ResourceExhaustedError(
            absl::StrFormat("%d jobs are waiting or running already, --max-jobs allows %d",
                            live_.size(), options_.max_waiting));
      }
      ++accepting_;
    }
    absl::Status stored = store_->Insert(live.job);
    {
      std::lock_guard lock(mutex_);
      --accepting_;
      if (stored.ok()) {
        order_.emplace(OrderKey(live.job), id);
        live_.emplace(id, std::move(live));
      }
    }
    if (absl::IsAlreadyExists(stored)) {  // the same key came twice at once
      auto known = FindSame(*store_, live.job.idempotency_key, wire);
      if (!known.ok()) return known.status();
      if (known->has_value()) return Get((*known)->id);
    }
    if (!stored.ok()) return stored;
    Wake();
    return Get(id);
  }

  using Order = std::pair<std::pair<std::int32_t, std::int64_t>, std::string>;
  static Order::first_type OrderKey(const StoredJob& job) { return {job.priority, job.created_us}; }

  // At start: puts a stored job back in line, or ends it when it cannot run any more.
  absl::Status TakeUp(StoredJob job) {
    auto request = Revive(job, JobRunnerOptions::kMaxAttempts, *served_);
    if (!request.ok()) {
      job.status = JobStatus::kFailed;
      job.error = request.status().ToString();
      job.ended_us = NowMicros();
      return store_->Append({}, {&job, 1});
    }
    Live live;
    live.request = *std::move(request);
    auto chunks = store_->Read(job.id, 0, -1, -1);
    if (!chunks.ok()) return chunks.status();
    live.replay = JobReplay(*chunks);
    live.request.sampling.seed = job.seed;
    live.job = std::move(job);
    const std::string id = live.job.id;
    order_.emplace(OrderKey(live.job), id);
    live_.emplace(id, std::move(live));
    return absl::OkStatus();
  }

  void Run() {
    bool retry = false;
    bool stop = false;
    for (;;) {
      std::deque<Event> events;
      {
        std::unique_lock lock(inbox_->mutex);
        const auto ready = [&] { return inbox_->stop || inbox_->poked || !inbox_->events.empty(); };
        if (retry) {
          inbox_->wake.wait_for(lock, std::chrono::milliseconds(100), ready);
        } else if (!started_) {
          started_ = true;
        } else {
          inbox_->wake.wait(lock, ready);
        }
        stop = inbox_->stop;
        inbox_->poked = false;
        events.swap(inbox_->events);
      }
      for (Event& event : events) Digest(std::move(event));
      EndCancelledInLine();
      const bool stored = Commit();
      if (stop) return;
      const bool all_in = FillEngine();
      retry = !stored || !all_in;
      if (!events.empty()) Pause();
    }
  }

  // Lets output gather, so that a fast stream costs a bounded number of commits per second.
  void Pause() {
    std::unique_lock lock(inbox_->mutex);
    inbox_->wake.wait_for(lock, std::chrono::duration<double>(options_.commit_interval_s),
                          [&] { return inbox_->stop; });
  }

  void Digest(Event event) {
    std::lock_guard lock(mutex_);
    auto it = live_.find(event.job);
    if (it == live_.end()) return;
    Live& live = it->second;
    OutputChunk chunk;
    chunk.offset = live.produced;
    for (const GeneratedToken& token : event.event.tokens) chunk.tokens.push_back(token.id);
    chunk.text = event.event.text;
    live.produced += static_cast<std::int64_t>(chunk.tokens.size());
    const bool last = event.event.finish != FinishReason::kNone;
    if (live.replay.active()) {
      Replay(live, std::move(chunk), last);
    } else {
      AddOutput(event.job, std::move(chunk));
    }
    if (last) EndLive(it, event.event);
  }

  void AddOutput(const std::string& job, OutputChunk chunk) {
    touched_.push_back(job);
    if (chunk.tokens.empty() && chunk.text.empty()) return;
    outputs_.push_back({job, std::move(chunk)});
  }

  void Replay(Live& live, OutputChunk chunk, bool last) {
    switch (live.replay.Add(std::move(chunk), last)) {
      case JobReplay::Outcome::kRepeats:
        return;
      case JobReplay::Outcome::kPassed:
        AddOutput(live.job.id, live.replay.rest());
        break;
      case JobReplay::Outcome::kDiffers:
        spdlog::warn("job {}: the run after a restart differs from what was stored and replaces it",
                     live.job.id);
        replaced_.emplace_back(live.job.id, live.replay.run());
        touched_.push_back(live.job.id);
        break;
    }
    live.replay = JobReplay();
  }

  void EndLive(std::map<std::string, Live>::iterator it, const GenerationEvent& last) {
    Live& live = it->second;
    --in_engine_;
    const bool not_its_own_end =
        last.finish == FinishReason::kError ||  // the engine failed: the next start tries again
        (last.finish == FinishReason::kCancelled && draining_ && !live.cancelled);
    if (not_its_own_end) {
      if (draining_) requeued_.push_back(live.job.id);
      live.in_engine = false;
      live_.erase(it);
      return;
    }
    const absl::Status status = FinalStatus(last);
    live.job.status = status.ok()                               ? JobStatus::kSucceeded
                      : last.finish == FinishReason::kCancelled ? JobStatus::kCancelled
                                                                : JobStatus::kFailed;
    live.job.finish = metattn::ToWire(last).SerializeAsString();
    if (live.job.status == JobStatus::kFailed) live.job.error = status.ToString();
    live.job.ended_us = NowMicros();
    ended_.push_back(live.job);
    touched_.push_back(live.job.id);
    live_.erase(it);
  }

  // Jobs that were cancelled before the engine had them.
  void EndCancelledInLine() {
    std::lock_guard lock(mutex_);
    for (auto it = order_.begin(); it != order_.end();) {
      auto live = live_.find(it->second);
      if (live != live_.end() && !live->second.cancelled) {
        ++it;
        continue;
      }
      if (live != live_.end()) {
        StoredJob& job = live->second.job;
        job.status = JobStatus::kCancelled;
        job.ended_us = NowMicros();
        v1::Finish finish;
        finish.set_reason(v1::FINISH_REASON_CANCELLED);
        job.finish = finish.SerializeAsString();
        ended_.push_back(job);
        touched_.push_back(job.id);
        live_.erase(live);
      }
      it = order_.erase(it);
    }
  }

  // False: try again later.
  bool Commit() {
    for (; !replaced_.empty(); replaced_.pop_back()) {
      auto s = store_->ReplaceOutput(replaced_.back().first, replaced_.back().second);
      if (!s.ok()) return Complain(s);
    }
    if (!outputs_.empty() || !ended_.empty()) {
      if (auto s = store_->Append(outputs_, ended_); !s.ok()) return Complain(s);
      outputs_.clear();
      ended_.clear();
    }
    // After their output, so that a job that is queued again shows all it has.
    for (; !requeued_.empty(); requeued_.pop_back()) {
      auto s = store_->SetStatus(requeued_.back(), JobStatus::kQueued, 0);
      if (!s.ok()) return Complain(s);
    }
    store_complained_ = false;
    std::vector<std::string> touched;
    touched.swap(touched_);
    std::vector<std::function<void()>> notify;
    {
      std::lock_guard lock(watch_mutex_);
      for (const auto& [handle, watcher] : watchers_) {
        if (std::find(touched.begin(), touched.end(), watcher.job) != touched.end()) {
          notify.push_back(watcher.notify);
        }
      }
    }
    for (const auto& call : notify) call();
    return true;
  }

  bool Complain(const absl::Status& status) {
    if (!store_complained_) spdlog::error("job store: {}; trying again", status.ToString());
    store_complained_ = true;
    return false;
  }

  // False: the engine's queue is full.
  bool FillEngine() {
    for (;;) {
      std::string id;
      GenerationRequest request;
      int attempts = 0;
      {
        std::lock_guard lock(mutex_);
        if (draining_ || in_engine_ >= options_.max_in_engine || order_.empty()) return true;
        id = order_.begin()->second;
        order_.erase(order_.begin());
        Live& live = live_.at(id);
        request = live.request;
        attempts = ++live.job.attempts;
        live.in_engine = true;
        ++in_engine_;
      }
      if (auto s = store_->SetStatus(id, JobStatus::kRunning, attempts); !s.ok()) Complain(s);
      auto engine_id = served_->engine->Submit(std::move(request),
                                               [inbox = inbox_, id](const GenerationEvent& event) {
                                                 {
                                                   std::lock_guard lock(inbox->mutex);
                                                   inbox->events.push_back({id, event});
                                                 }
                                                 inbox->wake.notify_one();
                                               });
      if (!TookIn(id, engine_id)) return false;
    }
  }

  bool TookIn(const std::string& id, const absl::StatusOr<std::uint64_t>& engine_id) {
    std::unique_lock lock(mutex_);
    auto it = live_.find(id);
    if (it == live_.end()) return true;
    Live& live = it->second;
    if (engine_id.ok()) {
      live.engine_id = *engine_id;
      const bool cancel = live.cancelled;
      lock.unlock();
      if (cancel) served_->engine->Cancel(*engine_id);
      return true;
    }
    const absl::StatusCode code = engine_id.status().code();
    const bool full =
        code == absl::StatusCode::kUnavailable ||
        (code == absl::StatusCode::kResourceExhausted && served_->engine->Snapshot().queued > 0);
    if (full) {  // its turn comes again
      --in_engine_;
      --live.job.attempts;
      live.in_engine = false;
      order_.emplace(OrderKey(live.job), id);
      return false;
    }
    GenerationEvent refused;
    refused.finish = FinishReason::kDeadline;  // any reason that FAILED maps to
    refused.status = engine_id.status();
    EndLive(it, refused);
    lock.unlock();
    Wake();
    return true;
  }

  const JobRunnerOptions options_;
  JobStore* const store_;
  const std::shared_ptr<const ServedModel> served_;
  const std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();

  mutable std::mutex mutex_;  // protects the block below
  std::map<std::string, Live> live_;
  std::multimap<Order::first_type, std::string> order_;  // jobs that wait for the engine
  int in_engine_ = 0;
  int accepting_ = 0;
  bool draining_ = false;

  // The runner's thread only.
  std::vector<JobOutput> outputs_;
  std::vector<StoredJob> ended_;
  std::vector<std::pair<std::string, std::vector<OutputChunk>>> replaced_;
  std::vector<std::string> requeued_;
  std::vector<std::string> touched_;
  bool store_complained_ = false;
  bool started_ = false;

  std::mutex watch_mutex_;
  std::map<std::uint64_t, Watcher> watchers_;
  std::uint64_t next_watcher_ = 0;

  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<JobRunner>> JobRunner::Create(
    const JobRunnerOptions& options, JobStore* store, std::shared_ptr<const ServedModel> served) {
  auto runner = std::make_unique<Runner>(options, store, std::move(served));
  if (auto s = runner->Start(); !s.ok()) return s;
  return runner;
}

}  // namespace metattn
