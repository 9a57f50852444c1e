// Hyper-parameters from GGUF metadata.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/gguf.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/text.h"
#include "engine/model/config_keys.h"

namespace metattn {
namespace {

// Keys under "<architecture>." that we read, or that change nothing about the result.
constexpr std::array<std::string_view, 27> kKnownKeys = {"attention.causal",
                                                         "attention.head_count",
                                                         "attention.head_count_kv",
                                                         "attention.key_length",
                                                         "attention.layer_norm_rms_epsilon",
                                                         "attention.sliding_window",
                                                         "attention.value_length",
                                                         "block_count",
                                                         "context_length",
                                                         "embedding_length",
                                                         "expert_count",
                                                         "expert_used_count",
                                                         "feed_forward_length",
                                                         "rope.dimension_count",
                                                         "rope.freq_base",
                                                         "rope.scale_linear",
                                                         "rope.scaling.attn_factor",
                                                         "rope.scaling.factor",
                                                         "rope.scaling.finetuned",
                                                         "rope.scaling.original_context_length",
                                                         "rope.scaling.type",
                                                         "rope.scaling.yarn_attn_factor",
                                                         "rope.scaling.yarn_beta_fast",
                                                         "rope.scaling.yarn_beta_slow",
                                                         "rope.scaling.yarn_ext_factor",
                                                         "tensor_data_layout",
                                                         "vocab_size"};

ConfigKeys::Scalar ToScalar(const Gguf::Value& value) {
  if (const auto* v = std::get_if<std::int64_t>(&value)) return *v;
  if (const auto* v = std::get_if<std::uint64_t>(&value); v && std::in_range<std::int64_t>(*v)) {
    return static_cast<std::int64_t>(*v);
  }
  if (const auto* v = std::get_if<double>(&value)) return *v;
  if (const auto* v = std::get_if<bool>(&value)) return *v;
  if (const auto* v = std::get_if<std::string_view>(&value)) return std::string(*v);
  return ConfigKeys::Other{};
}

bool IsKnown(std::string_view rest) {
  return std::find(kKnownKeys.begin(), kKnownKeys.end(), rest) != kKnownKeys.end();
}

// "mlama.rope.freq_base" or "llama_rope.freq_base": a hyper-parameter whose prefix is damaged, and
// whose default would silently be taken.
bool LooksDamaged(std::string_view key, std::string_view architecture) {
  if (key.starts_with("general.") || key.starts_with("tokenizer.")) return false;
  const std::size_t dot = key.find('.');
  return key.starts_with(architecture) || (dot != key.npos && IsKnown(key.substr(dot + 1)));
}

// Fails closed: a hyper-parameter we do not know could make another model of it.
absl::Status CheckKnown(const Gguf& gguf, const std::string& architecture,
                        const std::string& file) {
  for (const auto& [key, value] : gguf.metadata()) {
    const bool inside = key.starts_with(architecture + ".");
    if (inside ? IsKnown(key.substr(architecture.size() + 1)) : !LooksDamaged(key, architecture)) {
      continue;
    }
    return absl::UnimplementedError(absl::StrFormat(
        "%s: metadata key %s is not a hyper-parameter that we know", file, Quoted(key)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<double>> Divisors(const Checkpoint& checkpoint) {
  const TensorInfo* tensor = checkpoint.Find("rope_freqs.weight");
  if (tensor == nullptr) return std::vector<double>();
  if (tensor->dtype != DType::kF32 || tensor->shape.size() != 1 || tensor->shape[0] > kMaxHeadDim) {
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.path(), ": tensor 'rope_freqs.weight' must be a short vector of type f32"));
  }
  std::vector<double> divisors;
  for (std::size_t i = 0; i + sizeof(float) <= tensor->data.size(); i += sizeof(float)) {
    float value = 0;
    std::memcpy(&value, tensor->data.data() + i, sizeof(value));
    divisors.push_back(value);
  }
  return divisors;
}

absl::Status ReadSizes(const ConfigKeys& keys, const std::string& p, ModelConfig& c) {
  METATTN_ASSIGN_OR_RETURN(const auto layers, keys.Int(p + "block_count", 1, kMaxLayers));
  METATTN_ASSIGN_OR_RETURN(c.hidden, keys.Int(p + "embedding_length", 1, kMaxWidth));
  METATTN_ASSIGN_OR_RETURN(c.ffn, keys.Int(p + "feed_forward_length", 1, kMaxWidth));
  METATTN_ASSIGN_OR_RETURN(const auto heads, keys.Int(p + "attention.head_count", 1, kMaxHeads));
  METATTN_ASSIGN_OR_RETURN(const auto kv_heads,
                           keys.Int(p + "attention.head_count_kv", 1, kMaxHeads, heads));
  if (!keys.Has(p + "attention.key_length") && c.hidden % heads != 0) {
    return keys.Wrong(p + "attention.head_count", "does not divide the embedding length");
  }
  METATTN_ASSIGN_OR_RETURN(const auto head_dim,
                           keys.Int(p + "attention.key_length", 2, kMaxHeadDim, c.hidden / heads));
  METATTN_ASSIGN_OR_RETURN(const auto value_dim, keys.Int(p + "attention.value_length", 2,
                                                          kMaxHeadDim, c.hidden / heads));
  if (head_dim != value_dim) {
    return keys.Unsupported(p + "attention.value_length", "differs from the size of a key");
  }
  if (head_dim > kMaxHeadDim) return keys.Wrong(p + "attention.head_count", "is too small");
  METATTN_ASSIGN_OR_RETURN(auto positions, keys.Int(p + "context_length", 1, kMaxPositions));
  // Up to the window a model with sliding attention equals one without.
  METATTN_ASSIGN_OR_RETURN(const auto window,
                           keys.Int(p + "attention.sliding_window", 0, kMaxPositions, 0));
  if (window > 0) positions = std::min(positions, window);
  METATTN_ASSIGN_OR_RETURN(const double eps,
                           keys.Number(p + "attention.layer_norm_rms_epsilon", kMinEps, kMaxEps));
  c.layers = static_cast<int>(layers);
  c.heads = static_cast<int>(heads);
  c.kv_heads = static_cast<int>(kv_heads);
  c.head_dim = static_cast<int>(head_dim);
  c.max_positions = static_cast<int>(positions);
  c.norm_eps = static_cast<float>(eps);
  return absl::OkStatus();
}

absl::Status ReadRope(const ConfigKeys& keys, const std::string& p, const Checkpoint& checkpoint,
                      DeclaredConfig& declared) {
  ModelConfig& c = declared.config;
  RopeParameters& rope = declared.rope;
  METATTN_ASSIGN_OR_RETURN(const auto rotary,
                           keys.Int(p + "rope.dimension_count", 2, kMaxHeadDim, c.head_dim));
  c.rotary_dim = rope.rotary_dim = static_cast<int>(rotary);
  METATTN_ASSIGN_OR_RETURN(rope.base,
                           keys.Number(p + "rope.freq_base", kMinRopeBase, kMaxRopeBase, 10000.0));
  METATTN_ASSIGN_OR_RETURN(rope.divisors, Divisors(checkpoint));
  const std::string s = p + "rope.scaling.";
  // Files older than rope.scaling.* say rope.scale_linear.
  METATTN_ASSIGN_OR_RETURN(const double linear,
                           keys.Number(p + "rope.scale_linear", 1e-3, kMaxRopeFactor, 1.0));
  METATTN_ASSIGN_OR_RETURN(rope.factor, keys.Number(s + "factor", 0, kMaxRopeFactor, linear));
  if (rope.factor == 0) rope.factor = 1;  // writers put 0 for "not set"
  // Without a type, a factor means linear scaling.
  METATTN_ASSIGN_OR_RETURN(rope.type, keys.Text(s + "type", rope.factor == 1 ? "none" : "linear"));
  METATTN_ASSIGN_OR_RETURN(rope.original_positions, keys.Int(s + "original_context_length", 1,
                                                             kMaxPositions, c.max_positions));
  METATTN_ASSIGN_OR_RETURN(rope.beta_fast, keys.Number(s + "yarn_beta_fast", 1e-3, 1e6, 32.0));
  METATTN_ASSIGN_OR_RETURN(rope.beta_slow, keys.Number(s + "yarn_beta_slow", 1e-3, 1e6, 1.0));
  METATTN_ASSIGN_OR_RETURN(const double ext, keys.Number(s + "yarn_ext_factor", 0, 1e3, 1.0));
  if (ext != 1.0) return keys.Unsupported(s + "yarn_ext_factor", "must be 1");
  METATTN_ASSIGN_OR_RETURN(const double attn, keys.Number(s + "attn_factor", 1e-3, 1e3, 1.0));
  METATTN_ASSIGN_OR_RETURN(const double yarn_attn,
                           keys.Number(s + "yarn_attn_factor", 1e-3, 1e3, 1.0));
  if (rope.type == "none") {
    rope.factor = 1;
  } else if (rope.type != "linear" && rope.type != "yarn") {
    return keys.Unsupported(
        s + "type",
        absl::StrFormat("is %s; supported are none, linear and yarn", Quoted(rope.type)));
  }
  if (attn * yarn_attn != 1.0) {  // they multiply the factor that YaRN gives by itself
    if (rope.type != "yarn") return keys.Unsupported(s + "attn_factor", "needs the type yarn");
    rope.attention_factor = attn * yarn_attn * (1.0 + 0.1 * std::log(std::max(rope.factor, 1.0)));
  }
  c.rope_scaling = rope.type == "none" && !rope.divisors.empty() ? "llama3" : rope.type;
  return absl::OkStatus();
}

// What must be so for the plain Llama-like computation to be right.
absl::Status CheckPlain(const ConfigKeys& keys, const std::string& p) {
  METATTN_ASSIGN_OR_RETURN(const auto experts, keys.Int(p + "expert_count", 0, kMaxHeads, 0));
  if (experts > 0) return keys.Unsupported(p + "expert_count", "means a mixture of experts");
  METATTN_ASSIGN_OR_RETURN(const bool causal, keys.Bool(p + "attention.causal", true));
  if (!causal) return keys.Unsupported(p + "attention.causal", "must be true");
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const ConfigKeys& keys, const std::string& p,
                            const Checkpoint& checkpoint, ModelConfig& c) {
  const TensorInfo* table = checkpoint.Find("token_embd.weight");
  if (table == nullptr || table->shape.size() != 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path(), ": tensor 'token_embd.weight' is missing or not a matrix"));
  }
  METATTN_ASSIGN_OR_RETURN(c.vocab, keys.Int(p + "vocab_size", 1, kMaxVocab, table->shape[0]));
  const Gguf::Strings* tokens = checkpoint.gguf()->StringArray("tokenizer.ggml.tokens");
  if (tokens != nullptr && static_cast<std::int64_t>(tokens->size()) != table->shape[0]) {
    return keys.Wrong("tokenizer.ggml.tokens",
                      absl::StrFormat("has %d tokens, but 'token_embd.weight' %d rows",
                                      tokens->size(), table->shape[0]));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DeclaredConfig> DeclaredByGguf(const Checkpoint& checkpoint) {
  const Gguf& gguf = *checkpoint.gguf();
  const ConfigKeys keys(checkpoint.path(), /*integers_are_numbers=*/false,
                        [&gguf](std::string_view key) -> ConfigKeys::Scalar {
                          const auto found = gguf.metadata().find(key);
                          if (found == gguf.metadata().end()) return {};
                          return ToScalar(found->second);
                        });
  DeclaredConfig declared;
  ModelConfig& c = declared.config;
  METATTN_ASSIGN_OR_RETURN(c.architecture, keys.Text("general.architecture"));
  if (c.architecture != "llama" && c.architecture != "qwen2" && c.architecture != "qwen3") {
    return keys.Unsupported("general.architecture",
                            absl::StrFormat("is %s; supported are llama (with Mistral and SmolLM), "
                                            "qwen2 and qwen3",
                                            Quoted(c.architecture)));
  }
  METATTN_ASSIGN_OR_RETURN(
      c.name, keys.Text("general.name", std::filesystem::path(checkpoint.path()).stem().string()));
  const std::string p = c.architecture + ".";
  METATTN_RETURN_IF_ERROR(CheckKnown(gguf, c.architecture, checkpoint.path()));
  METATTN_RETURN_IF_ERROR(CheckPlain(keys, p));
  METATTN_RETURN_IF_ERROR(ReadSizes(keys, p, c));
  METATTN_RETURN_IF_ERROR(ReadVocabulary(keys, p, checkpoint, c));
  METATTN_RETURN_IF_ERROR(ReadRope(keys, p, checkpoint, declared));
  c.rope_interleaved = c.architecture == "llama";
  if (c.architecture == "qwen2") declared.qkv_bias = true;
  declared.qk_norm = c.architecture == "qwen3";
  return declared;
}

}  // namespace metattn
