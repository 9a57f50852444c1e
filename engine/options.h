// Everything an operator can set, with defaults; the flags of `metattn` fill it. Plain data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/types.h"

namespace metattn {

// What every command that runs a model needs.
struct ModelOptions {
  std::string model;           // --model: GGUF file or Hugging Face directory
  std::string device = "cpu";  // --device: cpu or ref
  std::string isa;             // METATTN_CPU_ISA
  int threads = 0;             // --threads per rank; 0: cores of this host / ranks on this host
  std::vector<double> rank_weights;  // --rank-weights 2,1; empty: equal
  int window = 256;                  // --window, tokens
  int sinks = 4;                     // --sinks, tokens
  bool deterministic = false;        // --deterministic
  double collective_timeout_s = 30;  // --collective-timeout
};

struct EngineOptions {
  std::string served_model_name;       // --served-model-name; empty: the model's own name
  int max_model_len = 0;               // --max-model-len, tokens; 0: the model's own
  int max_num_seqs = 64;               // --max-num-seqs, sequences of one step
  int max_num_batched_tokens = 512;    // --max-num-batched-tokens, rows of one step
  int max_queue = 1024;                // --max-queue, requests waiting; past it RESOURCE_EXHAUSTED
  std::int64_t kv_cache_bytes = 0;     // --kv-cache-memory per rank; 0: a quarter of what is free
  bool prefix_reuse = true;            // --no-prefix-reuse
  Mechanism route = Mechanism::kFull;  // --route, default for requests
  std::string chat_template;           // --chat-template; empty: recognised from the model
};

}  // namespace metattn
