// What `metattn generate` and `metattnctl generate` print: text as it comes on standard output, a
// summary on standard error; with --json one object at the end instead. Single-threaded; no errors.
#pragma once

#include <chrono>
#include <ostream>
#include <string>
#include <vector>

#include "metattn/v1/inference.pb.h"

namespace metattn {

class GenerateOutput {
 public:
  GenerateOutput(bool json, std::ostream& out, std::ostream& err);
  void Add(const v1::GenerateResponse& response);
  // After the last Add.
  void End();

 private:
  using Clock = std::chrono::steady_clock;
  const bool json_;
  std::ostream& out_;
  std::ostream& err_;
  const Clock::time_point start_ = Clock::now();
  Clock::time_point first_, last_;
  std::string text_;
  std::vector<std::int32_t> tokens_;
  v1::Finish finish_;
};

}  // namespace metattn
