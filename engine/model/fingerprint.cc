#include "engine/model/fingerprint.h"

#include <array>
#include <bit>
#include <cstdint>
#include <vector>

#include "absl/strings/str_format.h"
#include "engine/formats/status_macros.h"
#include "engine/model/tensor_values.h"

namespace metattn {
namespace {

class Fnv1a {
 public:
  void Byte(std::uint8_t byte) { hash_ = (hash_ ^ byte) * 1099511628211u; }
  void Text(const std::string& text) {
    for (const char c : text) Byte(static_cast<std::uint8_t>(c));
  }
  void Float(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) Byte(static_cast<std::uint8_t>(bits >> shift));
  }
  std::uint64_t value() const { return hash_; }

 private:
  std::uint64_t hash_ = 14695981039346656037u;
};

absl::Status AddVector(const Checkpoint& checkpoint, const std::string& name, std::int64_t size,
                       Fnv1a& hash) {
  const std::array<std::int64_t, 1> shape = {size};
  METATTN_ASSIGN_OR_RETURN(const TensorInfo* tensor, checkpoint.Require(name, shape));
  METATTN_ASSIGN_OR_RETURN(const std::vector<float> values, FloatValues(*tensor, 0, size));
  for (const float value : values) hash.Float(value);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::string> Fingerprint(const Checkpoint& checkpoint, const ModelConfig& c) {
  Fnv1a hash;
  hash.Text(absl::StrFormat("layers=%d hidden=%d heads=%d kv_heads=%d head_dim=%d vocab=%d\n",
                            c.layers, c.hidden, c.heads, c.kv_heads, c.head_dim, c.vocab));
  METATTN_RETURN_IF_ERROR(AddVector(checkpoint, "output_norm.weight", c.hidden, hash));
  for (int layer = 0; layer < c.layers; ++layer) {
    for (const char* norm : {"attn_norm", "ffn_norm"}) {
      METATTN_RETURN_IF_ERROR(
          AddVector(checkpoint, absl::StrFormat("blk.%d.%s.weight", layer, norm), c.hidden, hash));
    }
  }
  return absl::StrFormat("fnv1a64:%016x", hash.value());
}

}  // namespace metattn
