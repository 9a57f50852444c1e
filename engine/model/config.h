// Hyper-parameters of a Llama-like model, read from a checkpoint and checked for sanity.
// Pure data; FromCheckpoint reports the key (or file) that is missing, out of range or not
// supported.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"

namespace metattn {

struct ModelConfig {
  std::string name;          // general.name, else the file's or directory's name
  std::string architecture;  // "llama", "qwen2", "qwen3", "mistral"
  int layers = 0;
  std::int64_t hidden = 0;  // D
  std::int64_t ffn = 0;     // F
  std::int64_t vocab = 0;   // V
  int heads = 0;            // query heads
  int kv_heads = 0;
  int head_dim = 0;       // d
  int max_positions = 0;  // longest context
  float norm_eps = 1e-5f;
  bool tied_embeddings = false;  // output head = embedding table
  bool qkv_bias = false;
  bool qk_norm = false;

  // RoPE with its scaling variant folded in: angle of pair i at position p is p * inv_freq[i]; cos
  // and sin are multiplied by rope_scale (YaRN's attention factor, otherwise 1).
  int rotary_dim = 0;
  bool rope_interleaved = false;  // GGUF "llama" stores q and k rows for pairs (2i, 2i+1)
  std::vector<double> inv_freq;   // [rotary_dim / 2]
  float rope_scale = 1.0f;
  std::string rope_scaling;  // "none", "linear", "llama3", "yarn", ... for people

  int group() const { return heads / kv_heads; }

  // UNIMPLEMENTED: another architecture, activation or scaling variant. INVALID_ARGUMENT: numbers
  // that cannot be.
  static absl::StatusOr<ModelConfig> FromCheckpoint(const Checkpoint& checkpoint);
};

}  // namespace metattn
