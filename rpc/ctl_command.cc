#include "rpc/ctl_command.h"

#include <cstdlib>
#include <iostream>

#include "google/protobuf/util/json_util.h"
#include "rpc/flags.h"

namespace metattn {

void AddCommon(CLI::App& app, Common* common) {
  AddConfigFlag(app);
  AddFlag(app, "--server", common->server, "host:port of the server");
  AddSwitch(app, "--json", common->json, "one JSON object on standard output");
}

int Report(const absl::Status& status) {
  if (status.ok()) return EXIT_SUCCESS;
  std::cerr << "metattnctl: " << absl::StatusCodeToString(status.code()) << ": "
            << std::string(status.message()) << std::endl;
  return EXIT_FAILURE;
}

std::string ToJson(const google::protobuf::Message& message, bool zeros) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = zeros;
  std::string json;
  if (!google::protobuf::util::MessageToJsonString(message, &json, options).ok()) return "{}";
  return json;
}

}  // namespace metattn
