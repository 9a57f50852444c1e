// A small random Llama-like model with a byte-level tokenizer, as one GGUF file.
// The same options and seed always give the same bytes; a weight's values depend on seed and tensor
// name only, so models that differ in type differ by rounding alone. Not trained: its text is
// noise, its logits spread over a few nats. Aborts on options that cannot be (a test's bug).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/types.h"
#include "tests/support/gguf_writer.h"

namespace metattn::test {

struct TinyModelOptions {
  int layers = 2;
  std::int64_t hidden = 64;
  int heads = 4;
  int kv_heads = 2;
  int head_dim = 16;
  std::int64_t ffn = 96;
  std::int64_t vocab = 320;  // at least kTinyLeastVocab
  int max_positions = 512;
  DType dtype = DType::kF32;  // of matrices; one whose rows do not fill its blocks becomes f16
  bool qkv_bias = false;
  bool qk_norm = false;
  bool tied = true;
  float rope_base = 10000.0f;
  std::vector<float> rope_freqs;  // rope_freqs.weight [head_dim / 2], empty: none
  std::uint64_t seed = 1;
  // Which general.architecture; empty: qwen3 with QK norm, else qwen2 with bias, else llama.
  std::string architecture;
  std::string pre_tokenizer = "smollm";
  // Called last, to add or spoil things.
  std::function<void(GgufWriter&)> edit;
};

// 3 special tokens (<|endoftext|> 0, <|im_start|> 1, <|im_end|> 2) and one token per byte.
inline constexpr std::int64_t kTinyLeastVocab = 3 + 256;

// ChatML, which is what the model says it wants.
inline constexpr char kTinyChatTemplate[] =
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt "
    "%}{{ '<|im_start|>assistant\\n' }}{% endif %}";

// One f32 tensor of the model: outermost extent first, rows as in a Hugging Face file (the halves
// of a head rotate together).
struct TinyTensor {
  std::string name;  // canonical
  std::vector<std::int64_t> shape;
  std::vector<float> values;
};
std::vector<TinyTensor> TinyTensors(const TinyModelOptions& options);

struct TinyTokenizer {
  std::vector<std::string> tokens;  // in GPT-2's byte alphabet
  std::vector<std::int32_t> types;  // 1 normal, 3 control, 5 unused
  std::vector<std::string> merges;  // "left right"
};
TinyTokenizer MakeTinyTokenizer(std::int64_t vocab);

GgufWriter TinyModel(const TinyModelOptions& options);
// Writes the file and returns `path`.
std::string WriteTinyModel(const TinyModelOptions& options, const std::string& path);

}  // namespace metattn::test
