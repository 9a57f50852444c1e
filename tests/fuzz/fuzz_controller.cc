// Any bytes as one of a controller directory's two files, the other one sound: an error that names
// the file, or a controller whose every number is in range; never a crash.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>

#include "engine/model/controller_file.h"
#include "engine/model/controller_json.h"
#include "engine/model/fingerprint.h"
#include "engine/model/tensor_values.h"
#include "tests/fuzz/controller_seeds.h"
#include "tests/support/tiny_directory.h"

namespace metattn::test {
namespace {

void Need(bool condition) {
  if (!condition) std::abort();
}

void NeedError(const absl::Status& status, std::string_view file) {
  Need(!status.ok() && std::string(status.message()).find(file) != std::string::npos);
}

void CheckSpec(const ControllerSpec& spec, const ModelConfig& config) {
  Need(spec.window >= 1 && spec.sinks >= 0 && spec.width >= 1 && spec.max_context >= 1);
  Need(spec.eta >= 0 && spec.eta <= 1);
  Need(spec.features != ControlFeatures::kPaper || spec.max_context >= 2);
  Need(spec.features != ControlFeatures::kRetrofit || !spec.per_token);
  Need(spec.cost_weight >= 0 && std::isfinite(spec.cost_weight));
  Need(spec.epsilon > 0 && spec.temperature > 0 && std::isfinite(spec.temperature));
  Need(!spec.cost_weight_levels.empty());
  for (const auto* triples : {&spec.offsets, &spec.mix}) {
    Need(triples->size() == static_cast<std::size_t>(config.layers));
    for (const auto& heads : *triples) {
      Need(heads.size() == static_cast<std::size_t>(config.kv_heads));
      for (const PerMechanism& triple : heads) {
        for (const float value : triple) Need(std::isfinite(value));
        Need(!spec.per_token || triple == heads.front());
      }
    }
  }
}

void FuzzJson(std::string_view text) {
  static const ModelConfig config = FuzzedModel();
  static const std::string fingerprint = *Fingerprint(FuzzedCheckpoint(), config);
  const auto spec = ParseControllerJson(text, "fuzz.json", config, fingerprint);
  if (spec.ok()) {
    CheckSpec(*spec, config);
  } else {
    NeedError(spec.status(), "fuzz.json");
  }
}

// A directory of this process with a sound controller.json.
class Directory {
 public:
  Directory() : name_((std::filesystem::temp_directory_path() / "fuzz_XXXXXX").string()) {
    Need(mkdtemp(name_.data()) != nullptr);
    const ModelConfig config = FuzzedModel();
    const std::string fingerprint = *Fingerprint(FuzzedCheckpoint(), config);
    WriteFile(name_ + "/controller.json",
              ControllerJson(config, fingerprint, FuzzedController()).dump());
  }
  ~Directory() { std::filesystem::remove_all(name_); }
  Directory(const Directory&) = delete;
  Directory& operator=(const Directory&) = delete;
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

void FuzzTensors(std::string_view bytes) {
  static const ModelConfig config = FuzzedModel();
  static const Directory directory;
  WriteFile(directory.name() + "/controller.safetensors", std::string(bytes));
  const auto file = ControllerFile::Open(directory.name(), FuzzedCheckpoint(), config);
  if (!file.ok()) return NeedError(file.status(), "controller.safetensors");
  for (const char* name : {"linear.w_q", "linear.w_k", "linear.kappa", "controller.x_skip",
                           "controller.scalars", "controller.out_bias"}) {
    const TensorInfo* tensor = (*file)->Find(0, name);
    Need(tensor != nullptr);
    std::int64_t count = 1;
    for (const std::int64_t extent : tensor->shape) count *= extent;
    const auto values = FloatValues(*tensor, 0, count);
    Need(values.ok());
    for (const float value : *values) Need(std::isfinite(value));
  }
}

}  // namespace
}  // namespace metattn::test

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'J') metattn::test::FuzzJson(rest);
  if (data[0] == 'T') metattn::test::FuzzTensors(rest);
  return 0;
}
