// Everything an operator can set, with defaults; the flags of `metattn` fill it. Plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/routing_policy.h"

namespace metattn {

// What every command that runs a model needs.
struct ModelOptions {
  std::string model;           // --model: GGUF file or Hugging Face directory
  std::string device = "cpu";  // --device: cpu, ref or cuda
  std::string isa;             // METATTN_CPU_ISA
  int threads = 0;             // --threads per rank; 0: cores of this host / ranks on this host
  std::vector<double> rank_weights;     // --rank-weights 2,1; empty: equal, or as measured
  std::optional<bool> probe_ranks;      // --probe-ranks: measure; none: with cuda only
  bool attention_helpers = false;       // --attention-helpers
  std::vector<int> rank_devices;        // --rank-devices 0,1, with cuda; empty: number on the host
  double device_memory_fraction = 0.9;  // --device-memory-fraction: of a GPU, for this process
  std::string controller;               // --controller: controller directory; empty: none
  int window = 0;                       // --window, tokens; 0: the controller's, else 256
  int sinks = -1;                       // --sinks, tokens; -1: the controller's, else 4
  std::string record_decisions;         // --record-decisions: directory; empty: do not
  std::string replay_decisions;         // --replay-decisions: directory; empty: decide
  std::optional<double> force_share;    // --force-share: full at random, 0 to 1; none: decide
  std::uint64_t force_share_seed = 1;   // --force-share-seed
  bool deterministic = false;           // --deterministic
  double collective_timeout_s = 30;     // --collective-timeout
};

struct EngineOptions {
  std::string served_model_name;      // --served-model-name; empty: the model's own name
  int max_model_len = 0;              // --max-model-len, tokens; 0: the model's own
  int max_num_seqs = 64;              // --max-num-seqs, sequences of one step
  int state_snapshots = 16;           // --linear-state-snapshots, with a controller
  int max_num_batched_tokens = 512;   // --max-num-batched-tokens, rows of one step
  int max_queue = 1024;               // --max-queue, requests waiting; past it RESOURCE_EXHAUSTED
  std::int64_t kv_cache_bytes = 0;    // --kv-cache-memory per rank; 0: see its help
  bool prefix_reuse = true;           // --no-prefix-reuse
  RouteOptions route;                 // --route, --cost-weight, --eta: default for requests
  RoutingChange routing;              // bounds of requests' own wishes, elastic mode
  double elastic_raise_after_s = 2;   // --elastic-raise-after: load for so long, a level up
  double elastic_lower_after_s = 10;  // --elastic-lower-after: calm for so long, a level down
  double shadow_rate = 0;     // --shadow-rate: routed decode rows compared with full attention
  std::string chat_template;  // --chat-template; empty: recognised from the model
};

}  // namespace metattn
