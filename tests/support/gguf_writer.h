// Writes GGUF files for tests, sound ones and, through the public fields, wrong ones.
// Not thread safe. No checks: what is asked for is written.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/types.h"

namespace metattn::test {

class GgufWriter {
 public:
  // Numbers of the value types, as the format has them.
  enum Type : std::uint32_t {
    kU8 = 0,
    kI8,
    kU16,
    kI16,
    kU32,
    kI32,
    kF32,
    kBool,
    kString,
    kArray,
    kU64,
    kI64,
    kF64
  };

  void U32(std::string_view key, std::uint32_t value);
  void F32(std::string_view key, float value);
  void Bool(std::string_view key, bool value);
  void Text(std::string_view key, std::string_view value);
  void I32s(std::string_view key, const std::vector<std::int32_t>& values);
  void F32s(std::string_view key, const std::vector<float>& values);
  void Texts(std::string_view key, const std::vector<std::string>& values);
  // Any type number with any payload.
  void Raw(std::string_view key, std::uint32_t type, std::string_view payload);
  void Remove(std::string_view key);

  // shape: outermost first, as in TensorInfo.
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> shape;
    std::uint32_t type = 0;
    std::string data;
    std::optional<std::uint64_t> offset;  // else where the data is written
  };
  void Add(std::string_view name, const std::vector<std::int64_t>& shape, DType dtype,
           std::string data);
  Tensor* Find(std::string_view name);

  std::string Header() const;  // up to the tensor data
  std::string Bytes() const;

  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;  // of the layout; the key general.alignment is not written for it
  std::optional<std::uint64_t> tensor_count, key_count;  // else the true ones
  std::vector<Tensor> tensors;

 private:
  struct Entry {
    std::string key;
    std::uint32_t type;
    std::string payload;
  };
  std::vector<Entry> entries_;
};

// The number a GGUF file has for a type.
std::uint32_t GgufType(DType dtype);

}  // namespace metattn::test
