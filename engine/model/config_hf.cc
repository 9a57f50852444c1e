// Hyper-parameters from the config.json of a Hugging Face directory.
#include <algorithm>
#include <array>
#include <filesystem>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/json_text.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/text.h"
#include "engine/model/config_keys.h"

namespace metattn {
namespace {

using Json = nlohmann::json;

struct ModelFamily {
  std::string_view model_class;
  std::string_view architecture;
};
constexpr const char* kOriginal = "original_max_position_embeddings";

constexpr std::array<ModelFamily, 4> kFamilies = {{{"LlamaForCausalLM", "llama"},
                                                   {"MistralForCausalLM", "mistral"},
                                                   {"Qwen2ForCausalLM", "qwen2"},
                                                   {"Qwen3ForCausalLM", "qwen3"}}};

absl::Status ReadFamily(const ConfigKeys& keys, const Json& json, ModelConfig& c) {
  const auto found = json.find("architectures");
  if (found == json.end() || !found->is_array() || found->size() != 1 ||
      !found->front().is_string()) {
    return keys.Wrong("architectures", "must be a list of one name");
  }
  const auto& name = found->front().get_ref<const std::string&>();
  for (const ModelFamily& family : kFamilies) {
    if (name == family.model_class) c.architecture = family.architecture;
  }
  if (c.architecture.empty()) {
    return keys.Unsupported(
        "architectures",
        absl::StrFormat("is %s; supported are LlamaForCausalLM, MistralForCausalLM, "
                        "Qwen2ForCausalLM and Qwen3ForCausalLM",
                        Quoted(name)));
  }
  METATTN_ASSIGN_OR_RETURN(const std::string activation, keys.Text("hidden_act", "silu"));
  if (activation != "silu") {
    return keys.Unsupported("hidden_act",
                            absl::StrFormat("is %s; supported is silu", Quoted(activation)));
  }
  if (json.contains("quantization_config") && !json["quantization_config"].is_null()) {
    return keys.Unsupported("quantization_config",
                            "means quantised weights, which a directory may not have; use f32, "
                            "f16 or bf16 weights, or a GGUF file");
  }
  return absl::OkStatus();
}

// The positions up to which attention over everything equals the model's sliding attention.
absl::StatusOr<std::int64_t> Positions(const ConfigKeys& keys, const std::string& architecture) {
  METATTN_ASSIGN_OR_RETURN(auto positions, keys.Int("max_position_embeddings", 1, kMaxPositions));
  const bool qwen = architecture.starts_with("qwen");
  METATTN_ASSIGN_OR_RETURN(const bool slides,
                           keys.Bool("use_sliding_window", architecture == "mistral"));
  if (slides && (qwen || architecture == "mistral")) {
    METATTN_ASSIGN_OR_RETURN(const auto window,
                             keys.Int("sliding_window", 1, kMaxPositions, positions));
    positions = std::min(positions, window);
  }
  return positions;
}

absl::Status ReadSizes(const ConfigKeys& keys, ModelConfig& c) {
  const bool plain = c.architecture == "llama" || c.architecture == "mistral";
  METATTN_ASSIGN_OR_RETURN(const auto layers, keys.Int("num_hidden_layers", 1, kMaxLayers));
  METATTN_ASSIGN_OR_RETURN(c.hidden, keys.Int("hidden_size", 1, kMaxWidth));
  METATTN_ASSIGN_OR_RETURN(c.ffn, keys.Int("intermediate_size", 1, kMaxWidth));
  METATTN_ASSIGN_OR_RETURN(c.vocab, keys.Int("vocab_size", 1, kMaxVocab));
  METATTN_ASSIGN_OR_RETURN(const auto heads, keys.Int("num_attention_heads", 1, kMaxHeads));
  // Llama's files of before grouped heads lack the key; the others' defaults differ, so they must
  // have it.
  METATTN_ASSIGN_OR_RETURN(const auto kv_heads,
                           keys.Int("num_key_value_heads", 1, kMaxHeads,
                                    plain ? std::optional<std::int64_t>(heads) : std::nullopt));
  std::optional<std::int64_t> implied;
  if (c.architecture != "qwen3" && c.hidden % heads == 0) implied = c.hidden / heads;
  METATTN_ASSIGN_OR_RETURN(const auto head_dim, keys.Int("head_dim", 2, kMaxHeadDim, implied));
  if (head_dim < 2 || head_dim > kMaxHeadDim) {
    return keys.Wrong("num_attention_heads", "does not fit the hidden size");
  }
  METATTN_ASSIGN_OR_RETURN(const auto positions, Positions(keys, c.architecture));
  METATTN_ASSIGN_OR_RETURN(const double eps, keys.Number("rms_norm_eps", kMinEps, kMaxEps));
  c.layers = static_cast<int>(layers);
  c.heads = static_cast<int>(heads);
  c.kv_heads = static_cast<int>(kv_heads);
  c.head_dim = static_cast<int>(head_dim);
  c.max_positions = static_cast<int>(positions);
  c.norm_eps = static_cast<float>(eps);
  return absl::OkStatus();
}

absl::Status ReadYarn(const ConfigKeys& scaling, const ConfigKeys& keys, DeclaredConfig& declared) {
  RopeParameters& rope = declared.rope;
  const auto optional = [&](const char* key, std::optional<double>& value) -> absl::Status {
    if (!scaling.Has(key)) return absl::OkStatus();
    METATTN_ASSIGN_OR_RETURN(value, scaling.Number(key, 0, 1e3));
    return absl::OkStatus();
  };
  METATTN_ASSIGN_OR_RETURN(rope.beta_fast, scaling.Number("beta_fast", 1e-3, 1e6, 32.0));
  METATTN_ASSIGN_OR_RETURN(rope.beta_slow, scaling.Number("beta_slow", 1e-3, 1e6, 1.0));
  METATTN_ASSIGN_OR_RETURN(rope.truncate, scaling.Bool("truncate", true));
  METATTN_RETURN_IF_ERROR(optional("attention_factor", rope.attention_factor));
  METATTN_RETURN_IF_ERROR(optional("mscale", rope.mscale));
  METATTN_RETURN_IF_ERROR(optional("mscale_all_dim", rope.mscale_all_dim));
  // Published files leave max_position_embeddings at the original length and let YaRN extend it;
  // sliding attention still bounds it.
  ModelConfig& c = declared.config;
  METATTN_ASSIGN_OR_RETURN(const auto trained,
                           keys.Int("max_position_embeddings", 1, kMaxPositions));
  const double extended = std::min(static_cast<double>(rope.original_positions) * rope.factor,
                                   static_cast<double>(kMaxPositions));
  if (c.max_positions == trained && extended > static_cast<double>(trained)) {
    c.max_positions = static_cast<int>(extended);
  }
  return absl::OkStatus();
}

absl::Status ReadScaling(const ConfigKeys& scaling, const ConfigKeys& keys,
                         DeclaredConfig& declared) {
  RopeParameters& rope = declared.rope;
  ModelConfig& c = declared.config;
  METATTN_ASSIGN_OR_RETURN(const std::string old_type, scaling.Text("type", "default"));
  METATTN_ASSIGN_OR_RETURN(std::string type, scaling.Text("rope_type", old_type));
  if (type == "default") type = "none";
  rope.type = c.rope_scaling = type;
  if (type == "none") return absl::OkStatus();
  if (type != "linear" && type != "llama3" && type != "yarn" && type != "dynamic") {
    return scaling.Unsupported(
        "rope_type",
        absl::StrFormat("is %s; supported are default, linear, llama3, yarn and, up to "
                        "the original length, dynamic",
                        Quoted(type)));
  }
  METATTN_ASSIGN_OR_RETURN(const auto trained,
                           keys.Int("max_position_embeddings", 1, kMaxPositions));
  // Beside the scaling's own key some files have one at the top, which then counts.
  const bool outer = type != "linear" && keys.Has(kOriginal);
  METATTN_ASSIGN_OR_RETURN(
      rope.original_positions,
      (outer ? keys : scaling)
          .Int(kOriginal, 1, kMaxPositions,
               type == "llama3" ? std::nullopt : std::optional<std::int64_t>(trained)));
  std::optional<double> ratio;  // YaRN's factor may be left to follow from the lengths
  if (type == "yarn" && rope.original_positions < trained) {
    ratio = static_cast<double>(trained) / static_cast<double>(rope.original_positions);
  }
  METATTN_ASSIGN_OR_RETURN(rope.factor, scaling.Number("factor", 1.0, kMaxRopeFactor, ratio));
  if (type == "llama3") {
    METATTN_ASSIGN_OR_RETURN(rope.low_freq_factor, scaling.Number("low_freq_factor", 1e-3, 1e6));
    METATTN_ASSIGN_OR_RETURN(rope.high_freq_factor, scaling.Number("high_freq_factor", 1e-3, 1e6));
  } else if (type == "yarn") {
    return ReadYarn(scaling, keys, declared);
  } else if (type == "dynamic") {
    // Past the original length the frequencies would depend on the length of each sequence.
    c.max_positions =
        static_cast<int>(std::min<std::int64_t>(c.max_positions, rope.original_positions));
  }
  return absl::OkStatus();
}

absl::Status CheckWholeHeads(const ConfigKeys& keys) {
  METATTN_ASSIGN_OR_RETURN(const double part, keys.Number("partial_rotary_factor", 0, 1, 1.0));
  if (part == 1.0) return absl::OkStatus();
  return keys.Unsupported("partial_rotary_factor", "must be 1");
}

absl::Status ReadRope(const ConfigKeys& keys, const Json& json, DeclaredConfig& declared) {
  ModelConfig& c = declared.config;
  METATTN_RETURN_IF_ERROR(CheckWholeHeads(keys));
  c.rotary_dim = declared.rope.rotary_dim = c.head_dim;
  c.rope_scaling = "none";
  // Newer files hold everything in rope_parameters, older ones in rope_theta and rope_scaling.
  const char* name = json.contains("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const auto found = json.find(name);
  const bool has_scaling = found != json.end() && !found->is_null();
  if (has_scaling && !found->is_object()) return keys.Wrong(name, "must be an object");
  METATTN_ASSIGN_OR_RETURN(declared.rope.base,
                           keys.Number("rope_theta", kMinRopeBase, kMaxRopeBase, 10000.0));
  if (!has_scaling) return absl::OkStatus();
  const ConfigKeys scaling = JsonKeys(absl::StrCat(keys.file(), ": ", name), *found);
  METATTN_RETURN_IF_ERROR(CheckWholeHeads(scaling));
  METATTN_ASSIGN_OR_RETURN(declared.rope.base, scaling.Number("rope_theta", kMinRopeBase,
                                                              kMaxRopeBase, declared.rope.base));
  return ReadScaling(scaling, keys, declared);
}

}  // namespace

absl::StatusOr<DeclaredConfig> DeclaredByHuggingFace(const Checkpoint& checkpoint) {
  const std::filesystem::path directory(checkpoint.path());
  const std::string file = (directory / "config.json").string();
  METATTN_ASSIGN_OR_RETURN(const Json json, ParseJson(checkpoint.config_json(), file));
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": is not a JSON object"));
  }
  const ConfigKeys keys = JsonKeys(file, json);
  DeclaredConfig declared;
  ModelConfig& c = declared.config;
  c.name = (directory.has_filename() ? directory : directory.parent_path()).filename().string();
  METATTN_RETURN_IF_ERROR(ReadFamily(keys, json, c));
  METATTN_RETURN_IF_ERROR(ReadSizes(keys, c));
  METATTN_RETURN_IF_ERROR(ReadRope(keys, json, declared));
  METATTN_ASSIGN_OR_RETURN(declared.tied, keys.Bool("tie_word_embeddings", false));
  if (c.architecture == "qwen2") declared.qkv_bias = true;
  declared.qk_norm = c.architecture == "qwen3";
  return declared;
}

}  // namespace metattn
