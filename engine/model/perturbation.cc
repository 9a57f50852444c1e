#include "engine/model/perturbation.h"

#include "engine/model/mix_bits.h"

namespace metattn {

absl::Status Perturbation::Apply(View x, const std::vector<std::int32_t>& positions,
                                 std::int64_t dim, std::uint64_t place, Device& device,
                                 Stream& stream) const {
  if (!active() || positions.empty()) return absl::OkStatus();
  std::vector<float> host(positions.size() * static_cast<std::size_t>(dim));
  device.CopyOut(x, host.data(), host.size() * sizeof(float), stream);
  if (absl::Status s = stream.Synchronize(); !s.ok()) return s;
  for (std::size_t row = 0; row < positions.size(); ++row) {
    const std::uint64_t key =
        MixBits(MixBits(seed_ + place * 0x10001u) + static_cast<std::uint64_t>(positions[row]));
    for (std::int64_t i = 0; i < dim; ++i) {
      const double u =
          static_cast<double>(MixBits(key + static_cast<std::uint64_t>(i)) >> 11) * 0x1p-52 - 1.0;
      float& value = host[row * static_cast<std::size_t>(dim) + static_cast<std::size_t>(i)];
      value = static_cast<float>(value * (1.0 + relative_ * u));
    }
  }
  device.CopyIn(host.data(), x, host.size() * sizeof(float), stream);
  return stream.Synchronize();
}

}  // namespace metattn
