// Durable jobs in one SQLite file (WAL). The only user of sqlite3.h. Knows nothing of protos: the
// request and the end of a job are opaque bytes.
//
// One store per file: a second opener gets FAILED_PRECONDITION. Thread safe (one mutex; a call is a
// short transaction). A call that returned OK survives kill -9 of the process and loss of power
// (synchronous=FULL): budget one fsync per writing call, so append in batches. Output chunks are
// append-only until ReplaceOutput. Errors name the file.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace metattn {

enum class JobStatus : std::int32_t { kQueued = 1, kRunning, kSucceeded, kFailed, kCancelled };
inline bool IsEnded(JobStatus s) { return s >= JobStatus::kSucceeded; }

struct StoredJob {
  std::string id;
  std::string idempotency_key;  // empty: none; otherwise unique
  std::string request;          // bytes
  JobStatus status = JobStatus::kQueued;
  std::int32_t priority = 0;  // lower first
  std::int32_t attempts = 0;  // times it was started and did not come to an end
  std::uint64_t seed = 0;     // drawn at submission where the request had none
  std::string finish;         // bytes, when it ended
  std::string error;
  std::int64_t created_us = 0;  // since 1970
  std::int64_t ended_us = 0;    // 0: has not ended
};

// Tokens and text that came together; `offset` is the index of the first token.
struct OutputChunk {
  std::int64_t serial = -1;  // place in the job's output, given by the store
  std::int64_t offset = 0;
  std::vector<std::int32_t> tokens;
  std::string text;
};

struct JobOutput {
  std::string job;
  OutputChunk chunk;
};

class JobStore {
 public:
  // path: a file, created with its folder when missing; ":memory:" keeps nothing.
  static absl::StatusOr<std::unique_ptr<JobStore>> Open(const std::string& path);
  virtual ~JobStore() = default;

  // ALREADY_EXISTS: the id or the idempotency key is taken.
  [[nodiscard]] virtual absl::Status Insert(const StoredJob& job) = 0;
  virtual absl::StatusOr<StoredJob> Get(const std::string& id) const = 0;  // NOT_FOUND
  virtual absl::StatusOr<std::optional<StoredJob>> FindByKey(const std::string& key) const = 0;
  // Not ended, by (priority, created).
  virtual absl::StatusOr<std::vector<StoredJob>> Unfinished() const = 0;

  [[nodiscard]] virtual absl::Status SetStatus(const std::string& id, JobStatus status,
                                               int attempts) = 0;
  // One transaction: all chunks, then all ends (status, finish, error, ended_us of each).
  [[nodiscard]] virtual absl::Status Append(std::span<const JobOutput> outputs,
                                            std::span<const StoredJob> ended) = 0;
  // Takes the place of everything the job has produced.
  [[nodiscard]] virtual absl::Status ReplaceOutput(const std::string& id,
                                                   std::span<const OutputChunk> chunks) = 0;
  // Chunks that hold tokens from `offset` on and come after chunk `after` (-1: all), at most
  // `limit`, in order. The first may start before `offset`.
  virtual absl::StatusOr<std::vector<OutputChunk>> Read(const std::string& id, std::int64_t offset,
                                                        std::int64_t after, int limit) const = 0;
};

}  // namespace metattn
