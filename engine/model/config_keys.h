// Typed, range-checked look-ups of hyper-parameters, the same for GGUF metadata and config.json.
// Borrows what the look-up function reads. Thread safe if that is. INVALID_ARGUMENT names the file,
// the key and what it must be. A key of the wrong type is an error even where it is optional:
// taking the default instead would silently run another model.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/rope.h"
#include "nlohmann/json.hpp"

namespace metattn {

class ConfigKeys {
 public:
  struct Other {};  // a list, an object, a number too large
  using Scalar = std::variant<std::monostate, std::int64_t, double, bool, std::string, Other>;
  using Lookup = std::function<Scalar(std::string_view key)>;  // monostate: absent

  // integers_are_numbers: 10000 may stand for 10000.0 (JSON does that, GGUF has types).
  ConfigKeys(std::string file, bool integers_are_numbers, Lookup lookup)
      : file_(std::move(file)),
        integers_are_numbers_(integers_are_numbers),
        lookup_(std::move(lookup)) {}

  bool Has(std::string_view key) const {
    return !std::holds_alternative<std::monostate>(lookup_(key));
  }
  // Inclusive ranges. Without a fallback the key is required.
  absl::StatusOr<std::int64_t> Int(std::string_view key, std::int64_t low, std::int64_t high,
                                   std::optional<std::int64_t> fallback = {}) const;
  absl::StatusOr<double> Number(std::string_view key, double low, double high,
                                std::optional<double> fallback = {}) const;
  absl::StatusOr<bool> Bool(std::string_view key, std::optional<bool> fallback = {}) const;
  absl::StatusOr<std::string> Text(std::string_view key,
                                   std::optional<std::string> fallback = {}) const;

  const std::string& file() const { return file_; }
  absl::Status Wrong(std::string_view key, const std::string& what) const;
  absl::Status Unsupported(std::string_view key, const std::string& what) const;

 private:
  std::string file_;
  bool integers_are_numbers_;
  Lookup lookup_;
};

// The members of a JSON object, which must outlive the keys; `file` precedes each key in messages.
ConfigKeys JsonKeys(const std::string& file, const nlohmann::json& object);

// Bounds far above any published model: they catch damaged numbers and keep products in range.
inline constexpr std::int64_t kMaxLayers = 1024;
inline constexpr std::int64_t kMaxWidth = 1 << 20;
inline constexpr std::int64_t kMaxVocab = 1 << 24;
inline constexpr std::int64_t kMaxHeads = 4096;
inline constexpr std::int64_t kMaxHeadDim = 1024;
inline constexpr std::int64_t kMaxPositions = std::int64_t{1} << 27;
inline constexpr double kMinEps = 1e-12, kMaxEps = 1e-2;
inline constexpr double kMinRopeBase = 10.0, kMaxRopeBase = 1e10;
inline constexpr double kMaxRopeFactor = 1e5;

// What a file says, before its tensors are looked at.
struct DeclaredConfig {
  ModelConfig config;
  RopeParameters rope;
  // Nothing: as the tensors have it.
  std::optional<bool> tied, qkv_bias, qk_norm;
};
absl::StatusOr<DeclaredConfig> DeclaredByGguf(const Checkpoint& checkpoint);
absl::StatusOr<DeclaredConfig> DeclaredByHuggingFace(const Checkpoint& checkpoint);

// Every tensor of the model is there with its shape and a usable type, and no tensor is unknown (an
// ignored one would make another model of it).
absl::Status CheckTensors(const Checkpoint& checkpoint, const ModelConfig& config);

}  // namespace metattn
