#include "engine/model/controller_file.h"

#include <cmath>
#include <filesystem>
#include <unordered_map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/mapped_file.h"
#include "engine/formats/safetensors.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/tensor_layout.h"
#include "engine/model/block_hash.h"
#include "engine/model/controller_json.h"
#include "engine/model/fingerprint.h"
#include "engine/model/tensor_values.h"

namespace metattn {
namespace {

struct Wanted {
  const char* name;
  DType dtype;
  std::vector<std::int64_t> shape;
};

std::vector<Wanted> TensorsOfLayer(const ControllerSpec& spec, const ModelConfig& c) {
  const std::int64_t heads = c.heads, kv = c.kv_heads, d = c.head_dim, width = spec.width;
  const std::int64_t scalars = ControlScalars(spec.features, c.group()), k = kMechanisms;
  const std::int64_t deciders = spec.per_token ? 1 : kv;
  std::vector<Wanted> wanted = {
      {"linear.log_gain", DType::kF32, {heads}},
      {"linear.kappa", DType::kF32, {heads}},
      {"controller.x", DType::kBF16, {width, c.hidden}},
      {"controller.x_skip", DType::kBF16, {deciders, k, c.hidden}},
      {"controller.scalar_mean", DType::kF32, {deciders, scalars}},
      {"controller.scalar_scale", DType::kF32, {deciders, scalars}},
      {"controller.scalars", DType::kF32, {deciders, width, scalars}},
      {"controller.bias", DType::kF32, {deciders, width}},
      {"controller.out", DType::kF32, {deciders, k, width}},
      {"controller.out_bias", DType::kF32, {deciders, k}},
      {"controller.scalars_skip", DType::kF32, {deciders, k, scalars}},
  };
  if (spec.feature_map == FeatureMap::kHedgehog) {
    wanted.push_back({"linear.w_q", DType::kBF16, {heads, d, d}});
    wanted.push_back({"linear.w_k", DType::kBF16, {kv, d, d}});
  }
  return wanted;
}

std::string_view Text(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

class MappedController final : public ControllerFile {
 public:
  absl::Status Init(const std::string& directory, const Checkpoint& checkpoint,
                    const ModelConfig& config);

  const ControllerSpec& spec() const override { return spec_; }
  const TensorInfo* Find(int layer, std::string_view name) const override {
    const auto found = by_name_.find(FullName(layer, name));
    return found == by_name_.end() ? nullptr : &tensors_[found->second];
  }
  const std::string& digest() const override { return digest_; }

 private:
  static std::string FullName(int layer, std::string_view name) {
    return absl::StrFormat("layers.%d.%s", layer, std::string(name));
  }
  absl::Status Check(int layer, const Wanted& wanted) const;

  std::unique_ptr<MappedFile> json_, weights_;
  ControllerSpec spec_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, std::size_t> by_name_;
  std::string digest_;
};

absl::Status MappedController::Check(int layer, const Wanted& wanted) const {
  const auto wrong = [&](const std::string& what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tensor %s %s", weights_->path(), FullName(layer, wanted.name), what));
  };
  const TensorInfo* tensor = Find(layer, wanted.name);
  if (tensor == nullptr) return wrong("is missing");
  if (tensor->shape != wanted.shape) {
    return wrong(absl::StrCat("has shape ", ShapeText(tensor->shape), ", must have ",
                              ShapeText(wanted.shape)));
  }
  if (tensor->dtype != wanted.dtype) {
    return wrong(absl::StrFormat("has type %s, must have %s", std::string(Info(tensor->dtype).name),
                                 std::string(Info(wanted.dtype).name)));
  }
  std::int64_t count = 1;
  for (const std::int64_t extent : wanted.shape) count *= extent;
  METATTN_ASSIGN_OR_RETURN(const std::vector<float> values, FloatValues(*tensor, 0, count));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) return wrong(absl::StrFormat("holds %g at %d", values[i], i));
  }
  return absl::OkStatus();
}

absl::Status MappedController::Init(const std::string& directory, const Checkpoint& checkpoint,
                                    const ModelConfig& config) {
  const std::filesystem::path path(directory);
  METATTN_ASSIGN_OR_RETURN(json_, MappedFile::Open((path / "controller.json").string()));
  METATTN_ASSIGN_OR_RETURN(weights_, MappedFile::Open((path / "controller.safetensors").string()));
  METATTN_ASSIGN_OR_RETURN(const std::string fingerprint, Fingerprint(checkpoint, config));
  METATTN_ASSIGN_OR_RETURN(spec_,
                           ParseControllerJson(Text(*json_), json_->path(), config, fingerprint));
  spec_.name =
      path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
  METATTN_ASSIGN_OR_RETURN(tensors_, ParseSafetensors(weights_->bytes(), weights_->path()));
  for (std::size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
  const std::vector<Wanted> wanted = TensorsOfLayer(spec_, config);
  for (int layer = 0; layer < config.layers; ++layer) {
    for (const Wanted& w : wanted) METATTN_RETURN_IF_ERROR(Check(layer, w));
  }
  const BlockHash a = SeedHash(Text(*json_)), b = SeedHash(Text(*weights_));
  digest_ = absl::StrFormat("%016x%016x%016x%016x", a.hi, a.lo, b.hi, b.lo);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<ControllerFile>> ControllerFile::Open(const std::string& directory,
                                                                     const Checkpoint& checkpoint,
                                                                     const ModelConfig& config) {
  auto file = std::make_unique<MappedController>();
  METATTN_RETURN_IF_ERROR(file->Init(directory, checkpoint, config));
  return file;
}

}  // namespace metattn
