#include "tests/support/gguf_writer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace metattn::test {
namespace {

template <typename T>
std::string Pod(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

std::string Counted(std::string_view text) {
  return Pod<std::uint64_t>(text.size()) + std::string(text);
}

std::string ArrayHead(std::uint32_t type, std::size_t count) {
  return Pod(type) + Pod<std::uint64_t>(count);
}

std::size_t RoundUp(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

std::uint32_t GgufType(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ8_0:
      return 8;
    case DType::kI32:
      return 26;
    case DType::kBF16:
      return 30;
  }
  return ~0u;
}

void GgufWriter::U32(std::string_view key, std::uint32_t value) { Raw(key, kU32, Pod(value)); }
void GgufWriter::F32(std::string_view key, float value) { Raw(key, kF32, Pod(value)); }
void GgufWriter::Bool(std::string_view key, bool value) {
  Raw(key, kBool, Pod<std::uint8_t>(value ? 1 : 0));
}
void GgufWriter::Text(std::string_view key, std::string_view value) {
  Raw(key, kString, Counted(value));
}

void GgufWriter::I32s(std::string_view key, const std::vector<std::int32_t>& values) {
  std::string payload = ArrayHead(kI32, values.size());
  for (const std::int32_t value : values) payload += Pod(value);
  Raw(key, kArray, payload);
}

void GgufWriter::F32s(std::string_view key, const std::vector<float>& values) {
  std::string payload = ArrayHead(kF32, values.size());
  for (const float value : values) payload += Pod(value);
  Raw(key, kArray, payload);
}

void GgufWriter::Texts(std::string_view key, const std::vector<std::string>& values) {
  std::string payload = ArrayHead(kString, values.size());
  for (const std::string& value : values) payload += Counted(value);
  Raw(key, kArray, payload);
}

void GgufWriter::Raw(std::string_view key, std::uint32_t type, std::string_view payload) {
  entries_.push_back({std::string(key), type, std::string(payload)});
}

void GgufWriter::Remove(std::string_view key) {
  std::erase_if(entries_, [&](const Entry& entry) { return entry.key == key; });
}

void GgufWriter::Add(std::string_view name, const std::vector<std::int64_t>& shape, DType dtype,
                     std::string data) {
  tensors.push_back({std::string(name),
                     {shape.begin(), shape.end()},
                     GgufType(dtype),
                     std::move(data),
                     std::nullopt});
}

GgufWriter::Tensor* GgufWriter::Find(std::string_view name) {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const Tensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string GgufWriter::Header() const {
  std::string out = magic + Pod(version) + Pod(tensor_count.value_or(tensors.size())) +
                    Pod(key_count.value_or(entries_.size()));
  for (const Entry& entry : entries_) {
    out += Counted(entry.key) + Pod(entry.type) + entry.payload;
  }
  std::size_t offset = 0;
  for (const Tensor& tensor : tensors) {
    out += Counted(tensor.name) + Pod(static_cast<std::uint32_t>(tensor.shape.size()));
    for (auto extent = tensor.shape.rbegin(); extent != tensor.shape.rend(); ++extent) {
      out += Pod(*extent);
    }
    out += Pod(tensor.type) + Pod(tensor.offset.value_or(offset));
    offset += RoundUp(tensor.data.size(), alignment);
  }
  out.resize(RoundUp(out.size(), alignment), '\0');
  return out;
}

std::string GgufWriter::Bytes() const {
  std::string out = Header();
  for (const Tensor& tensor : tensors) {
    out += tensor.data;
    out.resize(RoundUp(out.size(), alignment), '\0');
  }
  return out;
}

}  // namespace metattn::test
