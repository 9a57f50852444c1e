// A whole routed model as a filter, for tests that compare it with another implementation.
//
//   routed_logits DIRECTORY   stdin: a JSON object with model, controller (directories or files),
//                             device, window, sinks, eta, tokens, rounding. Writes the logits of
//                             every position, [tokens, vocab] f32, to DIRECTORY/logits and the
//                             decisions to DIRECTORY/rank-0.decisions; stdout: by how much logits
//                             of the same decisions may differ when activations are rounded by
//                             `rounding`, relative (MeasuredBound).
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "engine/formats/status_macros.h"
#include "tests/support/model_runner.h"

namespace metattn::test {
namespace {

absl::Status Run(const std::string& directory, const nlohmann::json& given) {
  const std::string model = given.at("model");
  const std::vector<std::int32_t> tokens = given.at("tokens");
  RunnerOptions options;
  options.device = given.at("device");
  options.controller = given.at("controller");
  options.window = given.at("window");
  options.sinks = given.at("sinks");
  options.policy = {Route::kRouted, 0, given.at("eta")};
  options.record_decisions = directory;
  METATTN_ASSIGN_OR_RETURN(const RunnerOutput output, RunModel(model, tokens, options));
  std::ofstream file(directory + "/logits", std::ios::binary);
  file.write(reinterpret_cast<const char*>(output.logits.data()),
             static_cast<std::streamsize>(output.logits.size() * sizeof(float)));
  if (!file.flush()) return absl::UnavailableError("cannot write " + directory + "/logits");
  options.replay_decisions = std::exchange(options.record_decisions, "");
  METATTN_ASSIGN_OR_RETURN(const double bound,
                           MeasuredBound(model, tokens, options, given.at("rounding")));
  std::cout << bound << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace metattn::test

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: routed_logits DIRECTORY < object\n";
    return 2;
  }
  const nlohmann::json given = nlohmann::json::parse(std::cin);
  const absl::Status status = metattn::test::Run(argv[1], given);
  if (status.ok()) return 0;
  std::cerr << "routed_logits: " << status << "\n";
  return 1;
}
