#include "engine/formats/safetensors.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/byte_reader.h"
#include "engine/formats/json_text.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/tensor_layout.h"
#include "engine/formats/text.h"

namespace metattn {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;
constexpr std::size_t kMaxShapeLength = 8;

constexpr std::array<std::pair<std::string_view, DType>, 4> kTypes = {
    {{"F32", DType::kF32}, {"F16", DType::kF16}, {"BF16", DType::kBF16}, {"I32", DType::kI32}}};

absl::Status Damaged(const std::string& file, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what));
}

// The JSON text; `data` receives what follows it.
absl::StatusOr<std::string_view> HeaderText(std::span<const std::byte> bytes,
                                            const std::string& file,
                                            std::span<const std::byte>* data) {
  ByteReader reader(bytes);
  std::uint64_t length = 0;
  if (!reader.Read(&length)) {
    return Damaged(file,
                   absl::StrFormat("%d bytes are too few for a safetensors file", bytes.size()));
  }
  if (length > kMaxHeaderBytes || length > reader.remaining()) {
    return Damaged(file, absl::StrFormat("claims a header of %d bytes but has %d in all (is it a "
                                         "safetensors file, and not truncated?)",
                                         length, bytes.size()));
  }
  const auto size = static_cast<std::size_t>(length);
  *data = bytes.subspan(sizeof(length) + size);
  return std::string_view(reinterpret_cast<const char*>(bytes.data()) + sizeof(length), size);
}

absl::StatusOr<DType> Type(const Json& entry, const std::string& file, const std::string& where) {
  const auto found = entry.find("dtype");
  if (found == entry.end() || !found->is_string()) return Damaged(file, where + " has no 'dtype'");
  const auto& name = found->get_ref<const std::string&>();
  for (const auto& [known, dtype] : kTypes) {
    if (name == known) return dtype;
  }
  return absl::UnimplementedError(
      absl::StrFormat("%s: %s has type %s, which is not supported; use F32, F16 or BF16 tensors",
                      file, where, Quoted(name)));
}

// A list of whole numbers from 0 to 2^62, at most `most` of them.
absl::StatusOr<std::vector<std::int64_t>> Numbers(const Json& entry, const char* key,
                                                  std::size_t most, const std::string& context) {
  const auto found = entry.find(key);
  if (found == entry.end() || !found->is_array() || found->size() > most) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s has no list '%s' of at most %d numbers", context, key, most));
  }
  std::vector<std::int64_t> numbers;
  for (const Json& item : *found) {
    if (!item.is_number_unsigned() || item.get<std::uint64_t>() > std::uint64_t{1} << 62) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: '%s' holds what is not a whole number in range", context, key));
    }
    numbers.push_back(static_cast<std::int64_t>(item.get<std::uint64_t>()));
  }
  return numbers;
}

absl::Status CheckEntry(const Json& entry, const std::string& file, const std::string& where) {
  if (!entry.is_object()) return Damaged(file, where + " is not described by an object");
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      return Damaged(file, absl::StrFormat("%s has the unknown field %s", where, Quoted(key)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const Json& metadata, const std::string& file) {
  const bool strings =
      metadata.is_object() && std::all_of(metadata.begin(), metadata.end(),
                                          [](const Json& value) { return value.is_string(); });
  if (strings) return absl::OkStatus();
  return Damaged(file, "'__metadata__' is not a map from text to text");
}

}  // namespace

absl::StatusOr<std::vector<TensorInfo>> ParseSafetensors(std::span<const std::byte> bytes,
                                                         const std::string& name) {
  std::span<const std::byte> data;
  METATTN_ASSIGN_OR_RETURN(const std::string_view text, HeaderText(bytes, name, &data));
  METATTN_ASSIGN_OR_RETURN(const Json header, ParseJson(text, name));
  if (!header.is_object()) return Damaged(name, "its header is not a JSON object");
  std::vector<TensorInfo> tensors;
  std::vector<std::uint64_t> offsets;
  for (const auto& [key, entry] : header.items()) {
    if (key == "__metadata__") {
      METATTN_RETURN_IF_ERROR(CheckMetadata(entry, name));
      continue;
    }
    const std::string where = "tensor " + Quoted(key);
    if (!IsPlainName(key)) return Damaged(name, where + " has no printable name");
    METATTN_RETURN_IF_ERROR(CheckEntry(entry, name, where));
    TensorInfo tensor;
    tensor.name = key;
    METATTN_ASSIGN_OR_RETURN(tensor.dtype, Type(entry, name, where));
    const std::string context = absl::StrCat(name, ": ", where);
    METATTN_ASSIGN_OR_RETURN(tensor.shape, Numbers(entry, "shape", kMaxShapeLength, context));
    METATTN_ASSIGN_OR_RETURN(const auto range, Numbers(entry, "data_offsets", 2, context));
    const auto size = ByteSize(tensor.dtype, tensor.shape);
    if (!size.ok()) return Damaged(name, where + ": " + std::string(size.status().message()));
    if (range.size() != 2 || range[1] - range[0] != *size) {
      return Damaged(name, absl::StrFormat("%s: its 'data_offsets' do not span the %d bytes of its "
                                           "type and shape %s",
                                           where, *size, ShapeText(tensor.shape)));
    }
    offsets.push_back(static_cast<std::uint64_t>(range[0]));
    tensors.push_back(std::move(tensor));
  }
  if (tensors.empty()) return Damaged(name, "holds no tensors");
  METATTN_RETURN_IF_ERROR(PlaceInData(name, data, offsets, /*alignment=*/1, tensors));
  std::sort(tensors.begin(), tensors.end(),
            [](const TensorInfo& a, const TensorInfo& b) { return a.data.data() < b.data.data(); });
  return tensors;
}

}  // namespace metattn
