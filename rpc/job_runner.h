// Feeds stored jobs to the engine and stores what comes back.
//
// One thread of its own: takes events from the engine's thread, commits them in batches, then tells
// watchers, so that nobody ever sees a token that a crash could take back. Borrows the store and
// the served model's engine; both outlive it. Thread safe.
// After a restart every job that has not ended runs again from its start with its stored seed;
// tokens already stored stay as they are while the new run repeats them. If it does not (possible
// without --deterministic), the stored output is replaced and a warning logged. A job that was
// running at kMaxAttempts unplanned ends is failed, so that one bad job cannot stop the server for
// ever.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "metattn/v1/jobs.pb.h"
#include "rpc/job_store.h"
#include "rpc/served_model.h"

namespace metattn {

inline constexpr int kMaxIdempotencyKeyBytes = 128;

struct JobRunnerOptions {
  static constexpr int kMaxAttempts = 3;
  int max_in_engine = 64;           // jobs handed to the engine at a time
  int max_waiting = 10000;          // jobs stored and not ended; past it RESOURCE_EXHAUSTED
  double commit_interval_s = 0.02;  // at least between two commits of output
};

// What a watcher reads next.
struct JobProgress {
  std::vector<OutputChunk> chunks;
  bool ended = false;  // and every chunk is in `chunks` or was read before
};

class JobRunner {
 public:
  // Takes up what the store holds unfinished. The model must be loaded.
  static absl::StatusOr<std::unique_ptr<JobRunner>> Create(
      const JobRunnerOptions& options, JobStore* store, std::shared_ptr<const ServedModel> served);
  virtual ~JobRunner() = default;  // leaves unfinished jobs in the store

  virtual absl::StatusOr<v1::Job> Submit(const v1::SubmitJobRequest& request) = 0;
  virtual absl::StatusOr<v1::Job> Get(const std::string& id) const = 0;
  virtual absl::StatusOr<v1::Job> Cancel(const std::string& id) = 0;

  virtual absl::StatusOr<JobProgress> Read(const std::string& id, std::int64_t offset,
                                           std::int64_t after) const = 0;
  // notify is called after each commit that concerns the job, from the runner's thread, without
  // locks; it must not block. Returns a handle for Unsubscribe.
  virtual std::uint64_t Subscribe(const std::string& id, std::function<void()> notify) = 0;
  // One more call may be under way, so notify must keep what it touches alive.
  virtual void Unsubscribe(std::uint64_t handle) = 0;

  // No more jobs start; jobs that the engine then cancels stay queued for the next start.
  virtual void Drain() = 0;
  virtual int waiting() const = 0;  // stored, not in the engine
  virtual int running() const = 0;  // in the engine
};

}  // namespace metattn
