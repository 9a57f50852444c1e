#include "engine/formats/hugging_face.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <filesystem>
#include <map>
#include <optional>
#include <set>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/json_text.h"
#include "engine/formats/mapped_file.h"
#include "engine/formats/safetensors.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/text.h"

namespace metattn {
namespace {

using Json = nlohmann::json;
using Pairs = std::pair<std::string_view, std::string_view>;

constexpr std::array<Pairs, 3> kOuterNames = {{
    {"model.embed_tokens.weight", "token_embd.weight"},
    {"model.norm.weight", "output_norm.weight"},
    {"lm_head.weight", "output.weight"},
}};
// Inside a layer: what follows "model.layers.N." and what follows "blk.N.".
constexpr std::array<Pairs, 14> kLayerNames = {{
    {"input_layernorm.weight", "attn_norm.weight"},
    {"self_attn.q_proj.weight", "attn_q.weight"},
    {"self_attn.k_proj.weight", "attn_k.weight"},
    {"self_attn.v_proj.weight", "attn_v.weight"},
    {"self_attn.q_proj.bias", "attn_q.bias"},
    {"self_attn.k_proj.bias", "attn_k.bias"},
    {"self_attn.v_proj.bias", "attn_v.bias"},
    {"self_attn.o_proj.weight", "attn_output.weight"},
    {"self_attn.q_norm.weight", "attn_q_norm.weight"},
    {"self_attn.k_norm.weight", "attn_k_norm.weight"},
    {"post_attention_layernorm.weight", "ffn_norm.weight"},
    {"mlp.gate_proj.weight", "ffn_gate.weight"},
    {"mlp.up_proj.weight", "ffn_up.weight"},
    {"mlp.down_proj.weight", "ffn_down.weight"},
}};

class HuggingFaceCheckpoint : public Checkpoint {
 public:
  explicit HuggingFaceCheckpoint(std::string path) : path_(std::move(path)) {}

  absl::Status Load();

  Format format() const override { return Format::kHuggingFace; }
  const std::string& path() const override { return path_; }
  const std::vector<TensorInfo>& tensors() const override { return tensors_; }
  const TensorInfo* Find(std::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : &tensors_[found->second];
  }
  const Gguf* gguf() const override { return nullptr; }
  std::string_view config_json() const override { return Text(config_); }
  std::string_view tokenizer_json() const override { return Text(tokenizer_); }
  std::string_view tokenizer_config_json() const override { return Text(tokenizer_config_); }

 private:
  using File = std::unique_ptr<MappedFile>;

  static std::string_view Text(const File& file) {
    if (file == nullptr) return {};
    return {reinterpret_cast<const char*>(file->bytes().data()), file->bytes().size()};
  }
  std::string Join(std::string_view file) const {
    return (std::filesystem::path(path_) / file).string();
  }
  // Null when there is no such file.
  absl::StatusOr<File> OpenOptional(std::string_view name) const;
  absl::Status LoadFile(const std::string& file);
  absl::Status LoadSharded(std::string_view index_text, const std::string& index_name);
  absl::Status BuildIndex();

  const std::string path_;
  File config_, tokenizer_, tokenizer_config_;
  std::vector<File> files_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> raw_names_;  // the file's own, beside tensors_
  std::unordered_map<std::string_view, std::size_t> index_;
};

absl::StatusOr<HuggingFaceCheckpoint::File> HuggingFaceCheckpoint::OpenOptional(
    std::string_view name) const {
  auto file = MappedFile::Open(Join(name));
  if (absl::IsNotFound(file.status())) return File();
  return file;
}

absl::Status HuggingFaceCheckpoint::Load() {
  METATTN_ASSIGN_OR_RETURN(config_, OpenOptional("config.json"));
  if (config_ == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        path_, ": no config.json; a model is a Hugging Face directory or one .gguf file"));
  }
  METATTN_ASSIGN_OR_RETURN(tokenizer_, OpenOptional("tokenizer.json"));
  METATTN_ASSIGN_OR_RETURN(tokenizer_config_, OpenOptional("tokenizer_config.json"));
  METATTN_ASSIGN_OR_RETURN(const File single, OpenOptional("model.safetensors"));
  if (single != nullptr) {
    METATTN_RETURN_IF_ERROR(LoadFile("model.safetensors"));
    return BuildIndex();
  }
  METATTN_ASSIGN_OR_RETURN(const File shards, OpenOptional("model.safetensors.index.json"));
  if (shards == nullptr) {
    return absl::NotFoundError(absl::StrCat(
        path_,
        ": neither model.safetensors nor model.safetensors.index.json; other weight files "
        "(.bin, .pth) must be converted to safetensors"));
  }
  METATTN_RETURN_IF_ERROR(LoadSharded(Text(shards), shards->path()));
  return BuildIndex();
}

absl::Status HuggingFaceCheckpoint::LoadFile(const std::string& file) {
  METATTN_ASSIGN_OR_RETURN(File mapped, MappedFile::Open(Join(file)));
  METATTN_ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors,
                           ParseSafetensors(mapped->bytes(), mapped->path()));
  files_.push_back(std::move(mapped));
  for (TensorInfo& tensor : tensors) {
    raw_names_.push_back(tensor.name);
    tensor.name = CanonicalName(tensor.name);
    tensors_.push_back(std::move(tensor));
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceCheckpoint::LoadSharded(std::string_view index_text,
                                                const std::string& index_name) {
  METATTN_ASSIGN_OR_RETURN(const Json index, ParseJson(index_text, index_name));
  const auto damaged = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(index_name, ": ", what));
  };
  const auto found = index.is_object() ? index.find("weight_map") : index.end();
  if (found == index.end() || !found->is_object() || found->empty()) {
    return damaged("has no 'weight_map' from tensor names to files");
  }
  std::map<std::string, std::set<std::string>> shards;  // file -> tensors
  for (const auto& [tensor, file] : found->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    // Only a plain name beside the index: a path could lead anywhere on this machine.
    if (!IsPlainName(name) || name.find('/') != std::string::npos || name.front() == '.') {
      return damaged(absl::StrFormat("'weight_map' sends tensor %s to %s, not a file beside it",
                                     Quoted(tensor), Quoted(name)));
    }
    shards[name].insert(tensor);
  }
  for (const auto& [file, expected] : shards) {
    const std::size_t begin = raw_names_.size();
    METATTN_RETURN_IF_ERROR(LoadFile(file));
    const std::set<std::string> actual(raw_names_.begin() + static_cast<std::ptrdiff_t>(begin),
                                       raw_names_.end());
    for (const std::string& tensor : expected) {
      if (!actual.contains(tensor)) {
        return damaged(absl::StrFormat("tensor %s is not in %s", Quoted(tensor), Quoted(file)));
      }
    }
    for (const std::string& tensor : actual) {
      if (!expected.contains(tensor)) {
        return damaged(
            absl::StrFormat("tensor %s of %s is not listed, or listed under another file",
                            Quoted(tensor), Quoted(file)));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status HuggingFaceCheckpoint::BuildIndex() {
  for (std::size_t i = 0; i < tensors_.size(); ++i) {
    if (!index_.emplace(tensors_[i].name, i).second) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: two tensors are called %s", path_, Quoted(tensors_[i].name)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string CanonicalName(std::string_view name) {
  for (const auto& [from, to] : kOuterNames) {
    if (name == from) return std::string(to);
  }
  constexpr std::string_view kPrefix = "model.layers.";
  if (!name.starts_with(kPrefix)) return std::string(name);
  const std::string_view rest = name.substr(kPrefix.size());
  const std::size_t digits = rest.find_first_not_of("0123456789");
  const bool number = digits != std::string_view::npos && digits > 0 && rest[digits] == '.' &&
                      (rest[0] != '0' || digits == 1);
  if (!number) return std::string(name);
  for (const auto& [from, to] : kLayerNames) {
    if (rest.substr(digits + 1) == from) {
      return "blk." + std::string(rest.substr(0, digits + 1)) + std::string(to);
    }
  }
  return std::string(name);
}

absl::StatusOr<std::unique_ptr<Checkpoint>> OpenHuggingFace(const std::string& directory) {
  auto checkpoint = std::make_unique<HuggingFaceCheckpoint>(directory);
  METATTN_RETURN_IF_ERROR(checkpoint->Load());
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace metattn
