#include "engine/model/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"

namespace metattn {
namespace {

constexpr double kTwoPi = 2.0 * std::numbers::pi;

absl::Status Invalid(const std::string& what) {
  return absl::InvalidArgumentError("rope scaling: " + what);
}

// Long wavelengths are stretched by the factor, short ones kept, those between blended.
void ScaleLlama3(const RopeParameters& p, std::span<double> inv_freq) {
  const auto original = static_cast<double>(p.original_positions);
  for (double& f : inv_freq) {
    const double turns = original * f / kTwoPi;  // within the original context
    const double kept = std::clamp(
        (turns - p.low_freq_factor) / (p.high_freq_factor - p.low_freq_factor), 0.0, 1.0);
    f = kept * f + (1.0 - kept) * f / p.factor;
  }
}

// The pair index (a real number) that makes `turns` turns within the original context.
double YarnPair(const RopeParameters& p, double turns) {
  return p.rotary_dim * std::log(static_cast<double>(p.original_positions) / (turns * kTwoPi)) /
         (2.0 * std::log(p.base));
}

void ScaleYarn(const RopeParameters& p, std::span<double> inv_freq) {
  double low = YarnPair(p, p.beta_fast);
  double high = YarnPair(p, p.beta_slow);
  if (p.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, p.rotary_dim - 1.0);
  if (low == high) high += 0.001;  // a step, not a division by zero
  for (std::size_t i = 0; i < inv_freq.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / p.factor * ramp + inv_freq[i] * (1.0 - ramp);
  }
}

double YarnScale(const RopeParameters& p) {
  if (p.attention_factor) return *p.attention_factor;
  const auto scale = [&](double m) {
    return p.factor <= 1.0 ? 1.0 : 0.1 * m * std::log(p.factor) + 1.0;
  };
  // A zero counts as absent, as in the reference.
  if (p.mscale.value_or(0) != 0 && p.mscale_all_dim.value_or(0) != 0) {
    return scale(*p.mscale) / scale(*p.mscale_all_dim);
  }
  return scale(1.0);
}

absl::Status Check(const RopeParameters& p) {
  if (p.rotary_dim <= 0 || p.rotary_dim % 2 != 0) {
    return Invalid(
        absl::StrFormat("the rotary dimension %d is not even and positive", p.rotary_dim));
  }
  if (!(p.base > 1.0) || !std::isfinite(p.base)) return Invalid("the base is not above 1");
  if (!(p.factor > 0.0) || !std::isfinite(p.factor)) return Invalid("the factor is not positive");
  const bool needs_original = p.type == "llama3" || p.type == "yarn";
  if (needs_original && p.original_positions <= 0) {
    return Invalid(p.type + " needs the original context length");
  }
  if (p.type == "llama3" && !(p.low_freq_factor > 0 && p.high_freq_factor > p.low_freq_factor)) {
    return Invalid("llama3 needs 0 < low_freq_factor < high_freq_factor");
  }
  if (p.type == "yarn" && !(p.beta_slow > 0 && p.beta_fast >= p.beta_slow)) {
    return Invalid("yarn needs 0 < beta_slow <= beta_fast");
  }
  if (!p.divisors.empty() && p.divisors.size() != static_cast<std::size_t>(p.rotary_dim) / 2) {
    return Invalid(absl::StrFormat("%d frequency divisors do not fit the rotary dimension %d",
                                   p.divisors.size(), p.rotary_dim));
  }
  for (const double divisor : p.divisors) {
    if (!(divisor > 0.0) || !std::isfinite(divisor)) {
      return Invalid("a frequency divisor is not positive");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Rope> ComputeRope(const RopeParameters& p) {
  if (absl::Status status = Check(p); !status.ok()) return status;
  Rope rope;
  rope.inv_freq.resize(static_cast<std::size_t>(p.rotary_dim) / 2);
  for (std::size_t i = 0; i < rope.inv_freq.size(); ++i) {
    rope.inv_freq[i] = std::pow(p.base, -2.0 * static_cast<double>(i) / p.rotary_dim);
    if (!p.divisors.empty()) rope.inv_freq[i] /= p.divisors[i];
  }
  if (p.type == "linear") {
    for (double& f : rope.inv_freq) f /= p.factor;
  } else if (p.type == "llama3") {
    ScaleLlama3(p, rope.inv_freq);
  } else if (p.type == "yarn") {
    ScaleYarn(p, rope.inv_freq);
    rope.scale = YarnScale(p);
    if (!(rope.scale > 0.0) || !std::isfinite(rope.scale)) {
      return Invalid("yarn's attention factor is not positive");
    }
  } else if (p.type != "none" && p.type != "dynamic") {
    return absl::UnimplementedError(
        absl::StrFormat("rope scaling: the variant '%s' is not supported; supported are none, "
                        "linear, llama3, yarn and, up to the original length, dynamic",
                        p.type));
  }
  return rope;
}

}  // namespace metattn
