// Typed look-ups in the metadata of a parsed GGUF file.
#include <utility>

#include "engine/formats/gguf.h"

namespace metattn {
namespace {

template <typename T>
const T* Get(const std::unordered_map<std::string_view, Gguf::Value>& metadata,
             std::string_view key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? nullptr : std::get_if<T>(&found->second);
}

}  // namespace

std::optional<std::int64_t> Gguf::Int(std::string_view key) const {
  if (const auto* value = Get<std::int64_t>(metadata_, key)) return *value;
  const auto* value = Get<std::uint64_t>(metadata_, key);
  if (value == nullptr || !std::in_range<std::int64_t>(*value)) return std::nullopt;
  return static_cast<std::int64_t>(*value);
}

std::optional<double> Gguf::Float(std::string_view key) const {
  if (const auto* value = Get<double>(metadata_, key)) return *value;
  constexpr std::int64_t kExact = std::int64_t{1} << 53;
  const auto value = Int(key);
  if (!value || *value > kExact || *value < -kExact) return std::nullopt;
  return static_cast<double>(*value);
}

std::optional<bool> Gguf::Bool(std::string_view key) const {
  const auto* value = Get<bool>(metadata_, key);
  return value == nullptr ? std::nullopt : std::optional<bool>(*value);
}

std::optional<std::string_view> Gguf::String(std::string_view key) const {
  const auto* value = Get<std::string_view>(metadata_, key);
  return value == nullptr ? std::nullopt : std::optional<std::string_view>(*value);
}

const Gguf::Strings* Gguf::StringArray(std::string_view key) const {
  return Get<Strings>(metadata_, key);
}

std::optional<std::vector<std::int64_t>> Gguf::IntArray(std::string_view key) const {
  if (const auto* values = Get<std::vector<std::int64_t>>(metadata_, key)) return *values;
  const auto* values = Get<std::vector<std::uint64_t>>(metadata_, key);
  if (values == nullptr) return std::nullopt;
  std::vector<std::int64_t> out;
  out.reserve(values->size());
  for (const std::uint64_t value : *values) {
    if (!std::in_range<std::int64_t>(value)) return std::nullopt;
    out.push_back(static_cast<std::int64_t>(value));
  }
  return out;
}

std::optional<std::vector<double>> Gguf::FloatArray(std::string_view key) const {
  const auto* values = Get<std::vector<double>>(metadata_, key);
  return values == nullptr ? std::nullopt : std::optional<std::vector<double>>(*values);
}

}  // namespace metattn
