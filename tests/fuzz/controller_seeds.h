// The model that the fuzzed controllers are for, and the seeds. A seed is one letter and a file: J
// a controller.json, T a controller.safetensors.
#pragma once

#include <memory>
#include <string>

#include "engine/model/config.h"
#include "tests/support/controller_writer.h"

namespace metattn::test {

inline ModelConfig FuzzedModel() {
  ModelConfig config;
  config.layers = 1;
  config.hidden = 8;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 4;
  config.vocab = 16;
  return config;
}

// Width 2 keeps the files small.
inline ControllerOptions FuzzedController() { return {.width = 2}; }

// A checkpoint of that model with the tensors that a fingerprint needs. Lives as long as the
// process.
const Checkpoint& FuzzedCheckpoint();

void MakeControllerSeeds(const std::string& directory);

}  // namespace metattn::test
