#include "engine/model/decision_source.h"

#include <algorithm>

#include "engine/model/mix_bits.h"
#include "kernels/check.h"

namespace metattn {
namespace {

class SharedByDraw final : public DecisionSource {
 public:
  SharedByDraw(double share, Mechanism otherwise, std::uint64_t seed)
      : share_(share), otherwise_(otherwise), seed_(seed) {}

  absl::Status Decide(const DecisionRows& rows, std::span<std::uint8_t> decisions) override {
    const std::size_t tokens = rows.position.size();
    METATTN_CHECK(decisions.size() == tokens * static_cast<std::size_t>(rows.layers * rows.heads()),
                  "one decision per layer, row and KV head");
    std::size_t at = 0;
    for (int layer = 0; layer < rows.layers; ++layer) {
      for (std::size_t t = 0; t < tokens; ++t) {
        const std::uint64_t row = MixBits(MixBits(seed_ ^ MixBits(rows.request[t])) ^
                                          static_cast<std::uint64_t>(rows.position[t]));
        for (int h = rows.head_begin; h < rows.head_end; ++h, ++at) {
          const std::uint64_t draw = MixBits(row ^ MixBits(static_cast<std::uint64_t>(layer) << 32 |
                                                           static_cast<std::uint64_t>(h)));
          const bool full = static_cast<double>(draw >> 11) * 0x1p-53 < share_;
          const Mechanism mechanism = rows.eligible[t] == 0 ? Mechanism::kLocal
                                      : full                ? Mechanism::kFull
                                                            : otherwise_;
          decisions[at] = static_cast<std::uint8_t>(mechanism);
        }
      }
    }
    return absl::OkStatus();
  }

 private:
  double share_;
  Mechanism otherwise_;
  std::uint64_t seed_;
};

}  // namespace

std::unique_ptr<DecisionSource> ForceShare(double share, Mechanism otherwise, std::uint64_t seed) {
  return std::make_unique<SharedByDraw>(share, otherwise, seed);
}

}  // namespace metattn
