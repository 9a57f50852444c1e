// A random controller directory for a small model: sound as it is written, with hooks that spoil
// it. The same options and model give the same bytes. Not trained, but made so that every mechanism
// wins for a good share of the rows. Aborts on a model that cannot be read (a test's bug).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "engine/model/config.h"
#include "nlohmann/json.hpp"
#include "tests/support/safetensors_writer.h"

namespace metattn::test {

struct ControllerOptions {
  std::uint64_t seed = 1;
  int width = 8;  // R
  int window = 64, sinks = 4;
  bool hedgehog = true;  // else elu1
  bool softmax = false;  // link; else softplus
  bool exact_window = false, linear_all = false;
  bool per_token = false;  // decisions
  bool paper = false;      // features
  bool mixture = false;    // uncertain policy
  double eta = 1.0, cost_weight = 0.0;
  // Called last on the whole document and on the list of tensors.
  std::function<void(nlohmann::json&)> edit_json;
  std::function<void(std::vector<SafetensorsEntry>&)> edit_tensors;
};

// The two files' contents for a model of these numbers.
nlohmann::json ControllerJson(const ModelConfig& config, const std::string& fingerprint,
                              const ControllerOptions& options);
std::vector<SafetensorsEntry> ControllerTensors(const ModelConfig& config,
                                                const ControllerOptions& options);

// Creates (or empties) `directory`, writes a controller for the model at `model_path` there and
// returns it.
std::string WriteController(const std::string& model_path, const std::string& directory,
                            const ControllerOptions& options = {});

}  // namespace metattn::test
