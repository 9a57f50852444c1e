#include "rpc/job_records.h"

#include <algorithm>
#include <chrono>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "google/protobuf/util/message_differencer.h"
#include "rpc/convert.h"

namespace metattn {
namespace {

std::uint64_t Random64() {
  std::random_device device;
  return static_cast<std::uint64_t>(device()) << 32 | device();
}

google::protobuf::Timestamp ToTimestamp(std::int64_t micros) {
  google::protobuf::Timestamp t;
  t.set_seconds(micros / 1000000);
  t.set_nanos(static_cast<std::int32_t>(micros % 1000000) * 1000);
  return t;
}

v1::JobState ToWire(JobStatus status) { return static_cast<v1::JobState>(status); }
static_assert(static_cast<int>(JobStatus::kQueued) == v1::JOB_STATE_QUEUED);
static_assert(static_cast<int>(JobStatus::kRunning) == v1::JOB_STATE_RUNNING);
static_assert(static_cast<int>(JobStatus::kSucceeded) == v1::JOB_STATE_SUCCEEDED);
static_assert(static_cast<int>(JobStatus::kFailed) == v1::JOB_STATE_FAILED);
static_assert(static_cast<int>(JobStatus::kCancelled) == v1::JOB_STATE_CANCELLED);

}  // namespace

std::int64_t NowMicros() {
  return std::chrono::duration_cast<std::chrono::microseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

StoredJob NewJob(const std::string& idempotency_key, const v1::GenerateRequest& request) {
  StoredJob job;
  job.id = absl::StrFormat("job-%016x%016x", Random64(), Random64());
  job.idempotency_key = idempotency_key;
  job.request = request.SerializeAsString();
  job.priority = request.priority();
  job.seed = request.sampling().has_seed() ? request.sampling().seed() : Random64();
  job.created_us = NowMicros();
  return job;
}

absl::StatusOr<v1::Job> ReadJob(const JobStore& store, const std::string& id) {
  auto stored = store.Get(id);
  if (!stored.ok()) return stored.status();
  auto chunks = store.Read(id, 0, -1, -1);
  if (!chunks.ok()) return chunks.status();
  v1::Job job;
  job.set_id(stored->id);
  job.set_state(ToWire(stored->status));
  if (!job.mutable_request()->ParseFromString(stored->request) ||
      (!stored->finish.empty() && !job.mutable_finish()->ParseFromString(stored->finish))) {
    return absl::DataLossError(absl::StrCat("job '", id, "' is damaged in the store"));
  }
  for (const OutputChunk& chunk : *chunks) {
    job.mutable_token_ids()->Add(chunk.tokens.begin(), chunk.tokens.end());
    job.mutable_text()->append(chunk.text);
  }
  job.set_error(stored->error);
  *job.mutable_created() = ToTimestamp(stored->created_us);
  if (stored->ended_us != 0) *job.mutable_ended() = ToTimestamp(stored->ended_us);
  return job;
}

absl::StatusOr<std::optional<StoredJob>> FindSame(const JobStore& store, const std::string& key,
                                                  const v1::GenerateRequest& wire) {
  auto known = store.FindByKey(key);
  if (!known.ok() || !known->has_value()) return known;
  v1::GenerateRequest before;
  if (!before.ParseFromString((*known)->request) ||
      !google::protobuf::util::MessageDifferencer::Equals(before, wire)) {
    return absl::AlreadyExistsError(absl::StrCat("idempotency_key: '", key, "' belongs to job ",
                                                 (*known)->id, ", whose request differs"));
  }
  return known;
}

absl::StatusOr<GenerationRequest> Revive(const StoredJob& job, int max_attempts,
                                         const ServedModel& served) {
  v1::GenerateRequest wire;
  if (!wire.ParseFromString(job.request)) return absl::DataLossError("damaged in the store");
  if (job.attempts >= max_attempts) {
    return absl::AbortedError(
        absl::StrFormat("the server ended %d times while this job ran", job.attempts));
  }
  if (wire.has_deadline_seconds()) {
    const double age = 1e-6 * static_cast<double>(NowMicros() - job.created_us);
    wire.set_deadline_seconds(std::max(0.0, wire.deadline_seconds() - age));
  }
  auto request = ToEngine(wire, served);
  if (request.ok()) request->sampling.seed = job.seed;
  return request;
}

}  // namespace metattn
