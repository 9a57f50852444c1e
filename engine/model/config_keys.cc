#include "engine/model/config_keys.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace metattn {
namespace {

ConfigKeys::Scalar ToScalar(const nlohmann::json& value) {
  if (value.is_null()) return {};  // null stands for absent
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_string()) return value.get<std::string>();
  if (value.is_number_unsigned()) {
    const auto number = value.get<std::uint64_t>();
    if (std::in_range<std::int64_t>(number)) return static_cast<std::int64_t>(number);
    return ConfigKeys::Other{};
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number_float()) return value.get<double>();
  return ConfigKeys::Other{};
}

}  // namespace

absl::Status ConfigKeys::Wrong(std::string_view key, const std::string& what) const {
  return absl::InvalidArgumentError(absl::StrFormat("%s: key '%s' %s", file_, key, what));
}

absl::Status ConfigKeys::Unsupported(std::string_view key, const std::string& what) const {
  return absl::UnimplementedError(absl::StrFormat("%s: key '%s' %s", file_, key, what));
}

absl::StatusOr<std::int64_t> ConfigKeys::Int(std::string_view key, std::int64_t low,
                                             std::int64_t high,
                                             std::optional<std::int64_t> fallback) const {
  const Scalar value = lookup_(key);
  if (std::holds_alternative<std::monostate>(value)) {
    if (fallback) return *fallback;
    return Wrong(key, "is missing");
  }
  const auto* number = std::get_if<std::int64_t>(&value);
  if (number == nullptr || *number < low || *number > high) {
    return Wrong(key, absl::StrFormat("must be a whole number from %d to %d%s", low, high,
                                      number ? absl::StrFormat(", not %d", *number) : ""));
  }
  return *number;
}

absl::StatusOr<double> ConfigKeys::Number(std::string_view key, double low, double high,
                                          std::optional<double> fallback) const {
  const Scalar value = lookup_(key);
  if (std::holds_alternative<std::monostate>(value)) {
    if (fallback) return *fallback;
    return Wrong(key, "is missing");
  }
  std::optional<double> number;
  if (const auto* real = std::get_if<double>(&value)) number = *real;
  if (const auto* whole = std::get_if<std::int64_t>(&value); whole && integers_are_numbers_) {
    number = static_cast<double>(*whole);
  }
  if (!number || !(*number >= low && *number <= high)) {
    return Wrong(key, absl::StrFormat("must be a number from %g to %g%s", low, high,
                                      number ? absl::StrFormat(", not %g", *number) : ""));
  }
  return *number;
}

absl::StatusOr<bool> ConfigKeys::Bool(std::string_view key, std::optional<bool> fallback) const {
  const Scalar value = lookup_(key);
  if (std::holds_alternative<std::monostate>(value)) {
    if (fallback) return *fallback;
    return Wrong(key, "is missing");
  }
  if (const auto* flag = std::get_if<bool>(&value)) return *flag;
  return Wrong(key, "must be true or false");
}

absl::StatusOr<std::string> ConfigKeys::Text(std::string_view key,
                                             std::optional<std::string> fallback) const {
  const Scalar value = lookup_(key);
  if (std::holds_alternative<std::monostate>(value)) {
    if (fallback) return *fallback;
    return Wrong(key, "is missing");
  }
  if (const auto* text = std::get_if<std::string>(&value)) return *text;
  return Wrong(key, "must be text");
}

ConfigKeys JsonKeys(const std::string& file, const nlohmann::json& object) {
  return ConfigKeys(file, /*integers_are_numbers=*/true,
                    [&object](std::string_view key) -> ConfigKeys::Scalar {
                      const auto found = object.find(std::string(key));
                      if (found == object.end()) return {};
                      return ToScalar(*found);
                    });
}

}  // namespace metattn
