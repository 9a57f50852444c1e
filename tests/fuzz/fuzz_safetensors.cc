// Any bytes as a safetensors file: an error or tensors that lie inside, never a crash.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "engine/formats/safetensors.h"
#include "engine/formats/tensor_layout.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  const auto tensors = metattn::ParseSafetensors(bytes, "fuzz");
  if (!tensors.ok()) return 0;
  const std::byte* end = bytes.data();  // of the tensor before
  for (const metattn::TensorInfo& tensor : *tensors) {
    if (tensor.data.data() < end) std::abort();
    end = tensor.data.data() + tensor.data.size();
    const auto expected = metattn::ByteSize(tensor.dtype, tensor.shape);
    if (!expected.ok() || static_cast<std::size_t>(*expected) != tensor.data.size()) std::abort();
  }
  if (end > bytes.data() + bytes.size()) std::abort();
  return 0;
}
