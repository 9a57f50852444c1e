#include "tests/support/tiny_model.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numbers>
#include <string_view>
#include <unordered_set>
#include <utility>

#include "tests/support/encode_values.h"

namespace metattn::test {
namespace {

void Need(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "tiny model: %s\n", what);
  std::abort();
}

// Standard normal numbers from a counter: the same on every machine, up to the last bits of libm.
class Normal {
 public:
  Normal(std::uint64_t seed, std::string_view name) : state_(seed) {
    for (const char c : name) state_ = Mix(state_ ^ static_cast<unsigned char>(c));
  }
  float Next() {
    const double radius = std::sqrt(-2.0 * std::log(Uniform()));
    return static_cast<float>(radius * std::cos(2.0 * std::numbers::pi * Uniform()));
  }

 private:
  static std::uint64_t Mix(std::uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }
  double Uniform() {  // in (0, 1]
    state_ += 0x9e3779b97f4a7c15u;
    return (static_cast<double>(Mix(state_) >> 11) + 1.0) * 0x1p-53;
  }
  std::uint64_t state_;
};

class Tensors {
 public:
  explicit Tensors(std::uint64_t seed) : seed_(seed) {}
  void Add(const std::string& name, std::vector<std::int64_t> shape, float mean, float deviation) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    TinyTensor tensor{name, std::move(shape), {}};
    tensor.values.resize(static_cast<std::size_t>(count));
    Normal normal(seed_, name);
    for (float& value : tensor.values) value = mean + deviation * normal.Next();
    list.push_back(std::move(tensor));
  }
  // Rows that keep the size of their input.
  void AddMatrix(const std::string& name, std::int64_t rows, std::int64_t cols) {
    Add(name, {rows, cols}, 0.0f, 1.0f / std::sqrt(static_cast<float>(cols)));
  }
  std::vector<TinyTensor> list;

 private:
  std::uint64_t seed_;
};

void AddLayer(const TinyModelOptions& o, int layer, Tensors& t) {
  const std::string p = "blk." + std::to_string(layer) + ".";
  const std::int64_t q = std::int64_t{o.heads} * o.head_dim;
  const std::int64_t kv = std::int64_t{o.kv_heads} * o.head_dim;
  t.Add(p + "attn_norm.weight", {o.hidden}, 1.0f, 0.1f);
  t.AddMatrix(p + "attn_q.weight", q, o.hidden);
  t.AddMatrix(p + "attn_k.weight", kv, o.hidden);
  t.AddMatrix(p + "attn_v.weight", kv, o.hidden);
  if (o.qkv_bias) {
    t.Add(p + "attn_q.bias", {q}, 0.0f, 0.3f);
    t.Add(p + "attn_k.bias", {kv}, 0.0f, 0.3f);
    t.Add(p + "attn_v.bias", {kv}, 0.0f, 0.3f);
  }
  if (o.qk_norm) {
    t.Add(p + "attn_q_norm.weight", {o.head_dim}, 1.0f, 0.1f);
    t.Add(p + "attn_k_norm.weight", {o.head_dim}, 1.0f, 0.1f);
  }
  t.AddMatrix(p + "attn_output.weight", o.hidden, q);
  t.Add(p + "ffn_norm.weight", {o.hidden}, 1.0f, 0.1f);
  t.AddMatrix(p + "ffn_gate.weight", o.ffn, o.hidden);
  t.AddMatrix(p + "ffn_up.weight", o.ffn, o.hidden);
  t.AddMatrix(p + "ffn_down.weight", o.hidden, o.ffn);
}

std::string Architecture(const TinyModelOptions& o) {
  if (!o.architecture.empty()) return o.architecture;
  if (o.qk_norm) return "qwen3";
  return o.qkv_bias ? "qwen2" : "llama";
}

// Within each head, row i of the first half and row i of the second become rows 2i and 2i + 1:
// GGUF's "llama" rotates neighbours.
std::vector<float> Interleaved(const TinyTensor& tensor, int head_dim) {
  const std::int64_t rows = tensor.shape[0];
  const std::int64_t cols = tensor.shape.size() > 1 ? tensor.shape[1] : 1;
  std::vector<float> out(tensor.values.size());
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int64_t in_head = r % head_dim, half = head_dim / 2;
    const std::int64_t to = r - in_head + 2 * (in_head % half) + in_head / half;
    for (std::int64_t c = 0; c < cols; ++c) {
      out[static_cast<std::size_t>(to * cols + c)] =
          tensor.values[static_cast<std::size_t>(r * cols + c)];
    }
  }
  return out;
}

DType StoredType(const TinyModelOptions& o, const TinyTensor& tensor) {
  if (tensor.shape.size() == 1) return DType::kF32;
  return tensor.shape.back() % Info(o.dtype).block_values == 0 ? o.dtype : DType::kF16;
}

void WriteHyperParameters(const TinyModelOptions& o, GgufWriter& w) {
  const std::string arch = Architecture(o), p = arch + ".";
  w.Text("general.architecture", arch);
  w.Text("general.name", "tiny");
  w.U32(p + "block_count", static_cast<std::uint32_t>(o.layers));
  w.U32(p + "context_length", static_cast<std::uint32_t>(o.max_positions));
  w.U32(p + "embedding_length", static_cast<std::uint32_t>(o.hidden));
  w.U32(p + "feed_forward_length", static_cast<std::uint32_t>(o.ffn));
  w.U32(p + "attention.head_count", static_cast<std::uint32_t>(o.heads));
  w.U32(p + "attention.head_count_kv", static_cast<std::uint32_t>(o.kv_heads));
  w.U32(p + "attention.key_length", static_cast<std::uint32_t>(o.head_dim));
  w.U32(p + "attention.value_length", static_cast<std::uint32_t>(o.head_dim));
  w.F32(p + "attention.layer_norm_rms_epsilon", 1e-5f);
  w.F32(p + "rope.freq_base", o.rope_base);
  w.U32(p + "rope.dimension_count", static_cast<std::uint32_t>(o.head_dim));
  w.U32(p + "vocab_size", static_cast<std::uint32_t>(o.vocab));
}

void WriteTokenizer(const TinyModelOptions& o, GgufWriter& w) {
  const TinyTokenizer tokenizer = MakeTinyTokenizer(o.vocab);
  w.Text("tokenizer.ggml.model", "gpt2");
  w.Text("tokenizer.ggml.pre", o.pre_tokenizer);
  w.Texts("tokenizer.ggml.tokens", tokenizer.tokens);
  w.I32s("tokenizer.ggml.token_type", tokenizer.types);
  w.Texts("tokenizer.ggml.merges", tokenizer.merges);
  w.U32("tokenizer.ggml.bos_token_id", 1);
  w.U32("tokenizer.ggml.eos_token_id", 2);
  w.Bool("tokenizer.ggml.add_bos_token", false);
  w.Text("tokenizer.chat_template", kTinyChatTemplate);
}

std::string Utf8(std::uint32_t code) {  // below U+0800
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

// GPT-2's alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on.
std::vector<std::string> ByteAlphabet() {
  std::vector<std::string> alphabet;
  std::uint32_t next = 0x100;
  for (std::uint32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
    alphabet.push_back(Utf8(printable ? b : next++));
  }
  return alphabet;
}

}  // namespace

std::vector<TinyTensor> TinyTensors(const TinyModelOptions& o) {
  Need(o.layers > 0 && o.hidden > 0 && o.ffn > 0 && o.kv_heads > 0, "a size is not positive");
  Need(o.heads % o.kv_heads == 0 && o.head_dim % 2 == 0, "the heads do not fit");
  Tensors t(o.seed);
  // Spread of the logits: about 3, since the last norm makes its row of size one.
  const float deviation = 3.0f / std::sqrt(static_cast<float>(o.hidden));
  t.Add("token_embd.weight", {o.vocab, o.hidden}, 0.0f, deviation);
  for (int layer = 0; layer < o.layers; ++layer) AddLayer(o, layer, t);
  t.Add("output_norm.weight", {o.hidden}, 1.0f, 0.1f);
  if (!o.tied) t.Add("output.weight", {o.vocab, o.hidden}, 0.0f, deviation);
  return std::move(t.list);
}

TinyTokenizer MakeTinyTokenizer(std::int64_t vocab) {
  Need(vocab >= kTinyLeastVocab, "the vocabulary is too small for one token per byte");
  TinyTokenizer out;
  std::unordered_set<std::string> known;
  const auto add = [&](const std::string& token, std::int32_t type) {
    if (std::ssize(out.tokens) == vocab || !known.insert(token).second) return false;
    out.tokens.push_back(token);
    out.types.push_back(type);
    return true;
  };
  const auto merge = [&](const std::string& left, const std::string& right) {
    if (add(left + right, 1)) out.merges.push_back(left + " " + right);
  };
  for (const char* special : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) add(special, 3);
  const std::vector<std::string> bytes = ByteAlphabet();
  for (const std::string& byte : bytes) add(byte, 1);
  const std::string& blank = bytes[' '];
  constexpr const char* kWords[][2] = {{"t", "h"}, {"th", "e"}, {"i", "n"}, {"in", "g"},
                                       {"a", "n"}, {"an", "d"}, {"o", "u"}, {"e", "r"}};
  for (const auto& [left, right] : kWords) merge(left, right);
  for (const char* word : {"the", "and", "in"}) merge(blank, word);
  for (const char* lefts : {"etaoinshrdlu", "bcfgjkmpqvwxyz"}) {
    for (const char* l = lefts; *l != 0; ++l) merge(blank, std::string(1, *l));
    for (const char* l = lefts; *l != 0; ++l) {
      for (char r = 'a'; r <= 'z'; ++r) merge(std::string(1, *l), std::string(1, r));
    }
  }
  for (std::int64_t i = 0; std::ssize(out.tokens) < vocab; ++i) {
    add("[PAD" + std::to_string(i) + "]", 5);
  }
  return out;
}

GgufWriter TinyModel(const TinyModelOptions& o) {
  GgufWriter w;
  WriteHyperParameters(o, w);
  WriteTokenizer(o, w);
  const bool interleaved = Architecture(o) == "llama";
  if (!o.rope_freqs.empty()) {
    w.Add("rope_freqs.weight", {std::ssize(o.rope_freqs)}, DType::kF32,
          EncodeValues(DType::kF32, o.rope_freqs));
  }
  for (const TinyTensor& tensor : TinyTensors(o)) {
    const bool rotated = tensor.name.find("attn_q.") != std::string::npos ||
                         tensor.name.find("attn_k.") != std::string::npos;
    const DType dtype = StoredType(o, tensor);
    w.Add(tensor.name, tensor.shape, dtype,
          EncodeValues(dtype,
                       interleaved && rotated ? Interleaved(tensor, o.head_dim) : tensor.values));
  }
  if (o.edit) o.edit(w);
  return w;
}

std::string WriteTinyModel(const TinyModelOptions& options, const std::string& path) {
  std::ofstream file(path, std::ios::binary);
  file << TinyModel(options).Bytes();
  file.close();
  Need(file.good(), "cannot write the file");
  return path;
}

}  // namespace metattn::test
