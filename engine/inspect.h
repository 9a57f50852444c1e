// What a model is and what it needs: the report of `metattn inspect`.
//
// Reads the checkpoint's headers and tokenizer; allocates no weights and runs nothing, so it also
// answers for models that do not fit this machine. A tokenizer or a rank count that does not work
// is part of the report, not an error: the rest is worth reading. Errors: what opening the
// checkpoint or the controller and reading the configuration report; an unknown device, shares that
// are none. Pure but for reading the files; thread safe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/transformer.h"
#include "parallel/shard_planner.h"

namespace metattn {

struct InspectOptions {
  std::string model;                   // GGUF file or Hugging Face directory
  std::vector<int> ranks = {1, 2, 4};  // rank counts to plan for, with equal weights
  std::vector<double> rank_weights;    // not empty: this one plan instead, one weight per rank
  std::string controller;              // directory; empty: none
  std::string device;                  // name of device_model.h to expect times on; empty: none
  std::vector<double> route_shares;    // full, linear, local; empty: the controller's calibration
  TransformerOptions transformer;      // steps and context that scratch memory is computed for
};

// What device_model.h expects of the slowest rank, in seconds. Routed 0: nothing says the shares.
struct ExpectedTime {
  double dense = 0, routed = 0;
};
struct ExpectedTimes {
  int context = 0;
  std::vector<int> sequences;        // of a decode step
  std::vector<ExpectedTime> decode;  // of such a step
  ExpectedTime prefill;              // of one prompt
};

struct RankNeed {
  Slice slice;
  std::int64_t weight_bytes = 0;
  std::int64_t scratch_bytes = 0;
  std::int64_t kv_bytes_per_1000_tokens = 0;  // of context, over all sequences
};

struct RankPlan {
  std::vector<double> weights;          // one per rank
  std::vector<RankNeed> ranks;          // empty when `error` says why this count cannot work
  std::vector<ExpectedTimes> expected;  // with a device
  std::string error;
};

struct TokenizerFacts {
  std::string error;  // why this tokenizer cannot be used; the rest is then unset
  std::string pre_tokenizer;
  std::int64_t vocab = 0;
  std::int32_t bos_id = -1;  // -1: none
  std::vector<std::int32_t> stop_ids;
  std::string chat_template;  // the built-in one that is recognised; empty: none
};

struct TensorFacts {
  std::string name, type;
  std::vector<std::int64_t> shape;
  std::int64_t bytes = 0;
};

struct TypeTotal {
  std::string type;
  std::int64_t tensors = 0, parameters = 0, bytes = 0;
};

struct InspectReport {
  std::string path, format;  // "gguf" or "huggingface"
  ModelConfig config;
  std::vector<TensorFacts> tensors;  // in file order
  std::vector<TypeTotal> types;      // by falling bytes
  std::int64_t parameters = 0, bytes = 0;
  TokenizerFacts tokenizer;
  std::vector<RankPlan> plans;
  std::string device;     // that `expected` is for: its name and peaks; empty: none
  int prefill_chunk = 0;  // tokens of a step of that prefill
};

absl::StatusOr<InspectReport> Inspect(const InspectOptions& options);

// For people. With `tensors` one line for each tensor as well.
std::string ToText(const InspectReport& report, bool tensors);
// One JSON object, tensors included.
std::string ToJson(const InspectReport& report);

}  // namespace metattn
