#include "engine/model/config.h"

#include <algorithm>
#include <array>
#include <unordered_set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/text.h"
#include "engine/model/config_keys.h"

namespace metattn {
namespace {

bool IsMatrixType(DType t) { return t != DType::kI32; }
bool IsVectorType(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16; }

// Requires tensors one by one and remembers their names.
class TensorCheck {
 public:
  explicit TensorCheck(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  absl::Status Require(const std::string& name, std::vector<std::int64_t> shape) {
    METATTN_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint_.Require(name, shape));
    seen_.insert(name);
    const bool usable =
        shape.size() == 1 ? IsVectorType(tensor->dtype) : IsMatrixType(tensor->dtype);
    if (usable) return absl::OkStatus();
    return absl::UnimplementedError(absl::StrFormat(
        "%s: tensor %s has type %s, which is not supported for a %s", checkpoint_.path(),
        Quoted(name), Info(tensor->dtype).name, shape.size() == 1 ? "vector" : "matrix"));
  }

  absl::Status NothingElse() const {
    for (const TensorInfo& tensor : checkpoint_.tensors()) {
      // Old Hugging Face files store the frequencies, which follow from config.json.
      if (seen_.contains(tensor.name) || tensor.name.ends_with(".rotary_emb.inv_freq")) continue;
      return absl::UnimplementedError(
          absl::StrFormat("%s: tensor %s is not part of a model we know how to compute",
                          checkpoint_.path(), Quoted(tensor.name)));
    }
    return absl::OkStatus();
  }

 private:
  const Checkpoint& checkpoint_;
  std::unordered_set<std::string> seen_;
};

absl::Status CheckLayer(const ModelConfig& c, int layer, TensorCheck& check) {
  const std::string p = absl::StrCat("blk.", layer, ".");
  const std::int64_t q = std::int64_t{c.heads} * c.head_dim;
  const std::int64_t kv = std::int64_t{c.kv_heads} * c.head_dim;
  METATTN_RETURN_IF_ERROR(check.Require(p + "attn_norm.weight", {c.hidden}));
  METATTN_RETURN_IF_ERROR(check.Require(p + "attn_q.weight", {q, c.hidden}));
  METATTN_RETURN_IF_ERROR(check.Require(p + "attn_k.weight", {kv, c.hidden}));
  METATTN_RETURN_IF_ERROR(check.Require(p + "attn_v.weight", {kv, c.hidden}));
  METATTN_RETURN_IF_ERROR(check.Require(p + "attn_output.weight", {c.hidden, q}));
  if (c.qkv_bias) {
    METATTN_RETURN_IF_ERROR(check.Require(p + "attn_q.bias", {q}));
    METATTN_RETURN_IF_ERROR(check.Require(p + "attn_k.bias", {kv}));
    METATTN_RETURN_IF_ERROR(check.Require(p + "attn_v.bias", {kv}));
  }
  if (c.qk_norm) {
    METATTN_RETURN_IF_ERROR(check.Require(p + "attn_q_norm.weight", {c.head_dim}));
    METATTN_RETURN_IF_ERROR(check.Require(p + "attn_k_norm.weight", {c.head_dim}));
  }
  METATTN_RETURN_IF_ERROR(check.Require(p + "ffn_norm.weight", {c.hidden}));
  METATTN_RETURN_IF_ERROR(check.Require(p + "ffn_gate.weight", {c.ffn, c.hidden}));
  METATTN_RETURN_IF_ERROR(check.Require(p + "ffn_up.weight", {c.ffn, c.hidden}));
  return check.Require(p + "ffn_down.weight", {c.hidden, c.ffn});
}

absl::Status CheckHeads(const ModelConfig& c, const std::string& file) {
  const auto wrong = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": ", what));
  };
  if (c.heads % c.kv_heads != 0) {
    return wrong(
        absl::StrFormat("%d query heads are not a multiple of %d KV heads", c.heads, c.kv_heads));
  }
  if (c.head_dim % 2 != 0) return wrong(absl::StrFormat("the head size %d is odd", c.head_dim));
  if (c.rotary_dim % 2 != 0 || c.rotary_dim <= 0 || c.rotary_dim > c.head_dim) {
    return wrong(
        absl::StrFormat("the rotary dimension %d is not an even number up to the head "
                        "size %d",
                        c.rotary_dim, c.head_dim));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  TensorCheck check(checkpoint);
  METATTN_RETURN_IF_ERROR(check.Require("token_embd.weight", {config.vocab, config.hidden}));
  METATTN_RETURN_IF_ERROR(check.Require("output_norm.weight", {config.hidden}));
  // A tied model may still carry a head; it is not used then.
  if (!config.tied_embeddings || checkpoint.Find("output.weight") != nullptr) {
    METATTN_RETURN_IF_ERROR(check.Require("output.weight", {config.vocab, config.hidden}));
  }
  if (checkpoint.Find("rope_freqs.weight") != nullptr) {
    METATTN_RETURN_IF_ERROR(check.Require("rope_freqs.weight", {config.rotary_dim / 2}));
  }
  for (int layer = 0; layer < config.layers; ++layer) {
    METATTN_RETURN_IF_ERROR(CheckLayer(config, layer, check));
  }
  return check.NothingElse();
}

absl::StatusOr<ModelConfig> ModelConfig::FromCheckpoint(const Checkpoint& checkpoint) {
  const bool gguf = checkpoint.format() == Checkpoint::Format::kGguf;
  METATTN_ASSIGN_OR_RETURN(DeclaredConfig declared,
                           gguf ? DeclaredByGguf(checkpoint) : DeclaredByHuggingFace(checkpoint));
  ModelConfig config = std::move(declared.config);
  METATTN_RETURN_IF_ERROR(CheckHeads(config, checkpoint.path()));
  const auto has = [&](std::string_view name) { return checkpoint.Find(name) != nullptr; };
  config.tied_embeddings = declared.tied.value_or(!has("output.weight"));
  config.qkv_bias = declared.qkv_bias.value_or(has("blk.0.attn_q.bias"));
  config.qk_norm = declared.qk_norm.value_or(has("blk.0.attn_q_norm.weight"));
  METATTN_RETURN_IF_ERROR(CheckTensors(checkpoint, config));
  auto rope = ComputeRope(declared.rope);
  if (!rope.ok()) {
    return absl::Status(rope.status().code(),
                        absl::StrCat(checkpoint.path(), ": ", rope.status().message()));
  }
  config.inv_freq = std::move(rope->inv_freq);
  config.rope_scale = static_cast<float>(rope->scale);
  return config;
}

}  // namespace metattn
