// Command-line flags shared by the commands of metattn and metattnctl.
//
// Every flag has an environment twin METATTN_<NAME> (upper case, dashes as underscores) and may
// stand in the TOML file of --config under its own name; command line wins over file, file over
// environment. Parse handles --help and errors; under mpirun only rank 0 prints.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "engine/options.h"
#include "metattn/v1/inference.pb.h"

namespace metattn {

// "--max-model-len" -> "METATTN_MAX_MODEL_LEN".
std::string EnvironmentName(const std::string& flag);

// An option with its environment twin and its default in the help. Given twice, the last one
// counts, so that a script's flags can be overridden behind them.
template <typename T>
CLI::Option* AddFlag(CLI::App& app, const std::string& name, T& value, const std::string& help) {
  return app.add_option(name, value, help)
      ->capture_default_str()
      ->take_last()
      ->envname(EnvironmentName(name));
}
// A list takes all its values.
template <typename T>
CLI::Option* AddFlag(CLI::App& app, const std::string& name, std::vector<T>& value,
                     const std::string& help) {
  return app.add_option(name, value, help)->capture_default_str()->envname(EnvironmentName(name));
}
template <typename T>
CLI::Option* AddFlag(CLI::App& app, const std::string& name, std::optional<T>& value,
                     const std::string& help) {
  return app.add_option(name, value, help)->take_last()->envname(EnvironmentName(name));
}
CLI::Option* AddSwitch(CLI::App& app, const std::string& name, bool& value,
                       const std::string& help);

void AddConfigFlag(CLI::App& app);
void AddModelFlags(CLI::App& app, ModelOptions* options);
void AddEngineFlags(CLI::App& app, EngineOptions* options);
// Bounds of what requests may ask for, and elastic mode.
void AddRoutingFlags(CLI::App& app, EngineOptions* options);
void AddRouteFlags(CLI::App& app, RouteOptions* route);
// "full", "linear", "local", "routed".
std::optional<Route> RouteByName(const std::string& name);

// A prompt and how to continue it.
struct GenerateFlags {
  std::string prompt;
  std::string prompt_file;  // "-": standard input
  bool chat = false;
  std::string system;
  std::string model;
  std::optional<std::string> route;
  std::optional<float> cost_weight, eta;
  int priority = 0;
  std::optional<double> deadline_s;
  std::string request_id;
  std::optional<double> temperature, top_p, min_p, repetition_penalty, presence_penalty,
      frequency_penalty;
  std::optional<int> top_k, max_tokens, min_tokens, logprobs;
  std::optional<std::uint64_t> seed;
  std::vector<std::string> stop;
  std::vector<int> stop_token_ids;
  bool ignore_eos = false;
};
void AddGenerateFlags(CLI::App& app, GenerateFlags* flags);
// Reads the prompt (argument, file or standard input). INVALID_ARGUMENT or NOT_FOUND name the flag.
absl::StatusOr<v1::GenerateRequest> BuildRequest(const GenerateFlags& flags, std::istream& input);

// nullopt: go on. Otherwise the exit code: help was printed, or an error.
std::optional<int> Parse(CLI::App& app, int argc, char** argv);

}  // namespace metattn
