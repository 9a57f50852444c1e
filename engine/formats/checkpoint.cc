#include "engine/formats/checkpoint.h"

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/gguf.h"
#include "engine/formats/hugging_face.h"
#include "engine/formats/mapped_file.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/tensor_layout.h"
#include "engine/formats/text.h"

namespace metattn {
namespace {

class GgufCheckpoint : public Checkpoint {
 public:
  GgufCheckpoint(std::unique_ptr<MappedFile> file, std::unique_ptr<Gguf> gguf)
      : file_(std::move(file)), gguf_(std::move(gguf)) {
    for (const TensorInfo& tensor : gguf_->tensors()) index_.emplace(tensor.name, &tensor);
  }

  Format format() const override { return Format::kGguf; }
  const std::string& path() const override { return file_->path(); }
  const std::vector<TensorInfo>& tensors() const override { return gguf_->tensors(); }
  const TensorInfo* Find(std::string_view name) const override {
    const auto found = index_.find(name);
    return found == index_.end() ? nullptr : found->second;
  }
  const Gguf* gguf() const override { return gguf_.get(); }
  std::string_view config_json() const override { return {}; }
  std::string_view tokenizer_json() const override { return {}; }
  std::string_view tokenizer_config_json() const override { return {}; }

 private:
  const std::unique_ptr<MappedFile> file_;  // outlives gguf_, which points into it
  const std::unique_ptr<Gguf> gguf_;
  std::unordered_map<std::string_view, const TensorInfo*> index_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::error_code ignored;  // MappedFile reports what is wrong with the path
  if (std::filesystem::is_directory(path, ignored)) return OpenHuggingFace(path);
  if (path.ends_with(".safetensors") || path.ends_with(".json")) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": name the model's directory, not a file in it"));
  }
  METATTN_ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
  METATTN_ASSIGN_OR_RETURN(auto gguf, Gguf::Parse(file->bytes(), path));
  return std::make_unique<GgufCheckpoint>(std::move(file), std::move(gguf));
}

absl::StatusOr<const TensorInfo*> Checkpoint::Require(std::string_view name,
                                                      std::span<const std::int64_t> shape) const {
  const TensorInfo* tensor = Find(name);
  if (tensor == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tensor %s is missing", path(), Quoted(name)));
  }
  if (!std::equal(shape.begin(), shape.end(), tensor->shape.begin(), tensor->shape.end())) {
    return absl::InvalidArgumentError(absl::StrFormat("%s: tensor %s has shape %s, needed is %s",
                                                      path(), Quoted(name),
                                                      ShapeText(tensor->shape), ShapeText(shape)));
  }
  return tensor;
}

}  // namespace metattn
