// Any bytes as a GGUF file: an error or a model whose tensors lie inside, never a crash.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <utility>

#include "engine/formats/gguf.h"
#include "engine/model/config.h"
#include "tests/support/memory_checkpoint.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto bytes = std::as_bytes(std::span(data, size));
  auto gguf = metattn::Gguf::Parse(bytes, "fuzz");
  if (!gguf.ok()) return 0;
  const std::byte* begin = bytes.data();
  const std::byte* end = begin + bytes.size();
  for (const metattn::TensorInfo& tensor : (*gguf)->tensors()) {
    const std::byte* first = tensor.data.data();
    if (tensor.data.empty() || first < begin || first + tensor.data.size() > end) std::abort();
  }
  const metattn::test::MemoryCheckpoint checkpoint(*std::move(gguf));
  const auto config = metattn::ModelConfig::FromCheckpoint(checkpoint);
  if (config.ok() && config->inv_freq.size() * 2 != static_cast<std::size_t>(config->rotary_dim)) {
    std::abort();
  }
  return 0;
}
