// Between the wire's messages and the engine's plain structs; every check of a request that does
// not need the engine's state is here.
//
// A refusal's message starts with the path of the field (`sampling.temperature: ...`). Codes: see
// the table in rpc/README.md. Pure; thread safe; cost: tokenising the input.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/request.h"
#include "metattn/v1/inference.pb.h"
#include "rpc/served_model.h"

namespace metattn {

inline constexpr int kMaxRequestIdBytes = 128;

// NOT_FOUND names the model that is served. Empty means that one.
[[nodiscard]] absl::Status CheckModelName(const std::string& name, const ServedModel& served);

absl::StatusOr<GenerationRequest> ToEngine(const v1::GenerateRequest& request,
                                           const ServedModel& served);
absl::StatusOr<std::vector<std::int32_t>> TokenizeInput(const v1::TokenizeRequest& request,
                                                        const ServedModel& served);
absl::StatusOr<std::string> DetokenizeIds(const v1::DetokenizeRequest& request,
                                          const ServedModel& served);

// Appends the event's tokens and text; fills `finish` when it is the last.
void AppendEvent(const GenerationEvent& event, const Tokenizer& tokenizer,
                 v1::GenerateResponse* response);
v1::Finish ToWire(const GenerationEvent& last);
v1::Model DescribeModel(const ServedModel& served);

// What a call ends with: OK for stop and length, else the event's own status or one that fits.
absl::Status FinalStatus(const GenerationEvent& last);

}  // namespace metattn
