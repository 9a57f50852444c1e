#include "engine/model/perturbation.h"

namespace metattn {
namespace {

// SplitMix64's finaliser: a well mixed function of the key.
std::uint64_t Mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace

absl::Status Perturbation::Apply(View x, const std::vector<std::int32_t>& positions,
                                 std::int64_t dim, std::uint64_t place, Device& device,
                                 Stream& stream) const {
  if (!active() || positions.empty()) return absl::OkStatus();
  std::vector<float> host(positions.size() * static_cast<std::size_t>(dim));
  device.CopyOut(x, host.data(), host.size() * sizeof(float), stream);
  if (absl::Status s = stream.Synchronize(); !s.ok()) return s;
  for (std::size_t row = 0; row < positions.size(); ++row) {
    const std::uint64_t key =
        Mix(Mix(seed_ + place * 0x10001u) + static_cast<std::uint64_t>(positions[row]));
    for (std::int64_t i = 0; i < dim; ++i) {
      const double u =
          static_cast<double>(Mix(key + static_cast<std::uint64_t>(i)) >> 11) * 0x1p-52 - 1.0;
      float& value = host[row * static_cast<std::size_t>(dim) + static_cast<std::size_t>(i)];
      value = static_cast<float>(value * (1.0 + relative_ * u));
    }
  }
  device.CopyIn(host.data(), x, host.size() * sizeof(float), stream);
  return stream.Synchronize();
}

}  // namespace metattn
