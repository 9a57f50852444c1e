#include "tests/fuzz/controller_seeds.h"

#include <filesystem>
#include <span>
#include <utility>
#include <vector>

#include "engine/model/fingerprint.h"
#include "tests/support/memory_checkpoint.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/tiny_directory.h"

namespace metattn::test {

const Checkpoint& FuzzedCheckpoint() {
  static const std::vector<float> norm(8, 1.0f);
  static const MemoryCheckpoint checkpoint = [] {
    std::vector<TensorInfo> tensors;
    for (const char* name :
         {"output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"}) {
      tensors.push_back({name, DType::kF32, {8}, std::as_bytes(std::span(norm))});
    }
    return MemoryCheckpoint("", std::move(tensors));
  }();
  return checkpoint;
}

void MakeControllerSeeds(const std::string& directory) {
  std::filesystem::create_directories(directory);
  const ModelConfig config = FuzzedModel();
  const std::string fingerprint = *Fingerprint(FuzzedCheckpoint(), config);
  ControllerOptions other = FuzzedController();
  other.hedgehog = false;
  other.softmax = true;
  other.cost_weight = 0.5;
  ControllerOptions paper = FuzzedController();
  paper.sinks = 0;
  paper.hedgehog = false;
  paper.exact_window = paper.linear_all = paper.per_token = paper.paper = paper.mixture = true;
  for (const auto& [name, options] :
       {std::pair{"hedgehog", FuzzedController()}, {"elu1", other}, {"paper", paper}}) {
    const std::string path = directory + "/" + name;
    WriteFile(path + "_json", "J" + ControllerJson(config, fingerprint, options).dump());
    WriteFile(path + "_tensors", "T" + SafetensorsBytes(ControllerTensors(config, options)));
  }
}

}  // namespace metattn::test
