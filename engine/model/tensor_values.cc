#include "engine/model/tensor_values.h"

#include <cstring>
#include <string>

#include "absl/strings/str_format.h"

namespace metattn {

absl::StatusOr<std::vector<float>> FloatValues(const TensorInfo& tensor, std::int64_t begin,
                                               std::int64_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  const std::byte* data = tensor.data.data() + BytesFor(tensor.dtype, begin);
  if (tensor.dtype == DType::kF32) {
    if (count > 0) std::memcpy(values.data(), data, values.size() * sizeof(float));
    return values;
  }
  if (tensor.dtype != DType::kF16 && tensor.dtype != DType::kBF16) {
    return absl::UnimplementedError(
        absl::StrFormat("tensor %s: a vector of type %s is not supported", tensor.name,
                        std::string(Info(tensor.dtype).name)));
  }
  const auto convert = tensor.dtype == DType::kF16 ? &F16ToF32 : &Bf16ToF32;
  for (std::size_t i = 0; i < values.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, data + i * sizeof(half), sizeof(half));
    values[i] = convert(half);
  }
  return values;
}

}  // namespace metattn
