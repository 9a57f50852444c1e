// Any bytes as the config.json of a tiny model: an error or sane numbers, never a crash.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "engine/model/config.h"
#include "tests/support/memory_checkpoint.h"
#include "tests/support/tiny_model.h"

namespace {

std::vector<metattn::TensorInfo> TinyShapes() {
  std::vector<metattn::TensorInfo> out;
  for (const auto& tensor : metattn::test::TinyTensors({.layers = 1})) {
    out.push_back({tensor.name, metattn::DType::kF32, tensor.shape, {}});
  }
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::vector<metattn::TensorInfo> shapes = TinyShapes();
  const metattn::test::MemoryCheckpoint checkpoint(
      std::string_view(reinterpret_cast<const char*>(data), size), shapes);
  const auto config = metattn::ModelConfig::FromCheckpoint(checkpoint);
  if (!config.ok()) return 0;
  if (config->max_positions < 1 || !(config->rope_scale > 0)) std::abort();
  for (const double frequency : config->inv_freq) {
    if (!(frequency >= 0) || !std::isfinite(frequency)) std::abort();
  }
  return 0;
}
