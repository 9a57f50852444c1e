// Writes safetensors files for tests, sound ones and wrong ones. Pure; no checks.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/types.h"

namespace metattn::test {

struct SafetensorsEntry {
  std::string name;
  std::string dtype;  // "F32", "BF16", ...
  std::vector<std::int64_t> shape;
  std::string data;
};

// "F32" and so on; an empty text for a type that the format lacks.
std::string SafetensorsType(DType dtype);

std::string SafetensorsBytes(const std::vector<SafetensorsEntry>& entries);

// Any header text before any data.
std::string SafetensorsBytes(std::string_view header, std::string_view data);

}  // namespace metattn::test
