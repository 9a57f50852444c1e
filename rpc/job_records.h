// Between stored jobs, the wire's jobs and the engine's requests. Functions over a store; thread
// safe where the store is.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "engine/request.h"
#include "metattn/v1/jobs.pb.h"
#include "rpc/job_store.h"
#include "rpc/served_model.h"

namespace metattn {

std::int64_t NowMicros();  // since 1970

// A job of now with a new random id, and a drawn seed where the request has none.
StoredJob NewJob(const std::string& idempotency_key, const v1::GenerateRequest& request);
// The whole job with its output, for Get. NOT_FOUND; DATA_LOSS when the record does not parse.
absl::StatusOr<v1::Job> ReadJob(const JobStore& store, const std::string& id);
// The job of this idempotency key; ALREADY_EXISTS when its request is another one.
absl::StatusOr<std::optional<StoredJob>> FindSame(const JobStore& store, const std::string& key,
                                                  const v1::GenerateRequest& request);
// What to run for a job that a restart found unfinished, or why it cannot run any more.
absl::StatusOr<GenerationRequest> Revive(const StoredJob& job, int max_attempts,
                                         const ServedModel& served);

}  // namespace metattn
