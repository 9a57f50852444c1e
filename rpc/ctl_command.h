// What the commands of metattnctl share, and those that stand in files of their own.
#pragma once

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "google/protobuf/message.h"

namespace metattn {

struct Common {
  std::string server = "127.0.0.1:8001";
  bool json = false;
};
void AddCommon(CLI::App& app, Common* common);

// The exit code; says on standard error what went wrong.
int Report(const absl::Status& status);

// One line, fields by their names in the .proto. zeros: also fields that have their default.
std::string ToJson(const google::protobuf::Message& message, bool zeros = false);

int CommandRouting(int argc, char** argv);  // argv[0]: "routing"

}  // namespace metattn
