// Bytes to messages and back for services that parse their own requests.
//
// gRPC's generated handlers answer a request that does not parse (invalid UTF-8 in a string field,
// for one) with UNIMPLEMENTED and no text. Our services take the raw bytes instead, so that the
// answer is INVALID_ARGUMENT and names the field. Pure functions; thread safe.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "google/protobuf/message.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

namespace metattn {

bool IsValidUtf8(std::string_view text);

// INVALID_ARGUMENT: names the string field that is not UTF-8, or says that the bytes are no such
// message.
[[nodiscard]] absl::Status ParseMessage(const grpc::ByteBuffer& bytes,
                                        google::protobuf::Message* message);
grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

grpc::Status ToGrpc(const absl::Status& status);
absl::Status FromGrpc(const grpc::Status& status);
// "OK", "INVALID_ARGUMENT", ...
std::string_view CodeName(grpc::StatusCode code);

}  // namespace metattn
