// A checkpoint whose parts are given in memory: for fuzzing and for tests of what reads one.
// Borrows the bytes. Thread safe once filled.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/formats/checkpoint.h"
#include "engine/formats/gguf.h"

namespace metattn::test {

class MemoryCheckpoint : public Checkpoint {
 public:
  explicit MemoryCheckpoint(std::unique_ptr<Gguf> parsed)
      : parsed(std::move(parsed)), tensor_list(this->parsed->tensors()) {}
  MemoryCheckpoint(std::string_view config, std::vector<TensorInfo> tensors)
      : config(config), tensor_list(std::move(tensors)) {}

  Format format() const override { return parsed ? Format::kGguf : Format::kHuggingFace; }
  const std::string& path() const override { return name; }
  const std::vector<TensorInfo>& tensors() const override { return tensor_list; }
  const TensorInfo* Find(std::string_view wanted) const override {
    for (const TensorInfo& tensor : tensor_list) {
      if (tensor.name == wanted) return &tensor;
    }
    return nullptr;
  }
  const Gguf* gguf() const override { return parsed.get(); }
  std::string_view config_json() const override { return config; }
  std::string_view tokenizer_json() const override { return tokenizer; }
  std::string_view tokenizer_config_json() const override { return tokenizer_config; }

  std::string name = "memory";
  std::unique_ptr<Gguf> parsed;
  std::string_view config, tokenizer, tokenizer_config;
  std::vector<TensorInfo> tensor_list;
};

}  // namespace metattn::test
