// GGUF v3 (little endian): metadata and tensor directory of one mapped file.
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything is untrusted:
// counts, lengths, types, alignment, offsets and overlaps are checked before use. Thread safe after
// Parse. The bytes must outlive the object.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/formats/checkpoint.h"

namespace metattn {

class Gguf {
 public:
  using Strings = std::vector<std::string_view>;
  // Integers widen to i64/u64, floats to double; arrays of numbers likewise.
  using Value = std::variant<std::int64_t, std::uint64_t, double, bool, std::string_view,
                             std::vector<std::int64_t>, std::vector<std::uint64_t>,
                             std::vector<double>, std::vector<bool>, Strings>;

  // `name` stands for the file in messages.
  static absl::StatusOr<std::unique_ptr<Gguf>> Parse(std::span<const std::byte> bytes,
                                                     const std::string& name);

  const std::unordered_map<std::string_view, Value>& metadata() const { return metadata_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }

  // The value under `key` if present with a fitting type, else nothing. Integers convert where they
  // fit.
  std::optional<std::int64_t> Int(std::string_view key) const;
  std::optional<double> Float(std::string_view key) const;
  std::optional<bool> Bool(std::string_view key) const;
  std::optional<std::string_view> String(std::string_view key) const;
  const Strings* StringArray(std::string_view key) const;
  std::optional<std::vector<std::int64_t>> IntArray(std::string_view key) const;
  std::optional<std::vector<double>> FloatArray(std::string_view key) const;

 private:
  std::unordered_map<std::string_view, Value> metadata_;
  std::vector<TensorInfo> tensors_;
};

}  // namespace metattn
