#include "engine/formats/gguf.h"

#include <algorithm>
#include <array>
#include <limits>
#include <type_traits>
#include <unordered_set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "engine/formats/byte_reader.h"
#include "engine/formats/status_macros.h"
#include "engine/formats/tensor_layout.h"
#include "engine/formats/text.h"

namespace metattn {
namespace {

constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr std::uint32_t kVersion = 3;
// Far above any real model; they bound what a hostile header can make us allocate.
constexpr std::uint64_t kMaxKeys = 1u << 16;
constexpr std::uint64_t kMaxTensors = 1u << 18;
constexpr std::uint64_t kMaxElements = 1u << 24;  // of all metadata arrays together
constexpr std::uint32_t kMaxDimensions = 4;
constexpr std::uint64_t kMaxAlignment = 1u << 16;
// The fewest bytes one entry can take: they bound the counts by the bytes that are left.
constexpr std::uint64_t kLeastKeyBytes = 8 + 1 + 4 + 1;
constexpr std::uint64_t kLeastTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;

// Value types of the metadata, by their number in the file.
enum ValueType : std::uint32_t {
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
  kF64,
};

// Tensor types by their number in the file; an empty name is a number never given out. Types we
// compute with have `dtype`.
struct FileType {
  std::string_view name;
  std::optional<DType> dtype;
};
constexpr std::array<FileType, 40> kFileTypes = {{
    {"f32", DType::kF32},
    {"f16", DType::kF16},
    {"q4_0", DType::kQ4_0},
    {"q4_1", DType::kQ4_1},
    {"q4_2", {}},
    {"q4_3", {}},
    {"q5_0", {}},
    {"q5_1", {}},
    {"q8_0", DType::kQ8_0},
    {"q8_1", {}},
    {"q2_k", {}},
    {"q3_k", {}},
    {"q4_k", {}},
    {"q5_k", {}},
    {"q6_k", {}},
    {"q8_k", {}},
    {"iq2_xxs", {}},
    {"iq2_xs", {}},
    {"iq3_xxs", {}},
    {"iq1_s", {}},
    {"iq4_nl", {}},
    {"iq3_s", {}},
    {"iq2_s", {}},
    {"iq4_xs", {}},
    {"i8", {}},
    {"i16", {}},
    {"i32", DType::kI32},
    {"i64", {}},
    {"f64", {}},
    {"iq1_m", {}},
    {"bf16", DType::kBF16},
    {"q4_0_4_4", {}},
    {"q4_0_4_8", {}},
    {"q4_0_8_8", {}},
    {"tq1_0", {}},
    {"tq2_0", {}},
    {"iq4_nl_4_4", {}},
    {"iq4_nl_4_8", {}},
    {"iq4_nl_8_8", {}},
    {"mxfp4", {}},
}};

// Reads one file. Fields fill up as Run advances; the caller moves them out.
class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& name)
      : bytes_(bytes), name_(name), reader_(bytes) {}

  absl::Status Run();

  std::unordered_map<std::string_view, Gguf::Value> metadata;
  std::vector<TensorInfo> tensors;

 private:
  absl::Status ReadCounts(std::uint64_t* tensor_count, std::uint64_t* key_count);
  absl::Status ReadKey();
  absl::StatusOr<Gguf::Value> ReadValue(std::uint32_t type, const std::string& where);
  absl::StatusOr<Gguf::Value> ReadArray(const std::string& where);
  template <typename Stored, typename Wide>
  absl::StatusOr<Gguf::Value> ReadNumber(const std::string& where);
  template <typename Stored, typename Wide>
  absl::StatusOr<Gguf::Value> ReadNumbers(std::uint64_t count, const std::string& where);
  absl::StatusOr<bool> ReadBool(const std::string& where);
  absl::StatusOr<std::string_view> ReadText(const std::string& where);
  absl::StatusOr<std::uint64_t> Alignment() const;
  absl::Status ReadTensor();
  absl::StatusOr<DType> TensorType(std::uint32_t type, const std::string& where) const;
  absl::Status PlaceTensors();

  absl::Status Damaged(const std::string& what) const {
    return absl::InvalidArgumentError(name_ + ": " + what);
  }
  absl::Status Ended(const std::string& where) const {
    return Damaged(absl::StrFormat("ends inside %s (%d bytes in all; is the file truncated?)",
                                   where, bytes_.size()));
  }

  const std::span<const std::byte> bytes_;
  const std::string& name_;
  ByteReader reader_;
  std::uint64_t elements_ = 0;
  std::vector<std::uint64_t> offsets_;  // of tensors, from the start of the data
  std::unordered_set<std::string_view> tensor_names_;
};

absl::Status Parser::Run() {
  std::uint64_t tensor_count = 0, key_count = 0;
  METATTN_RETURN_IF_ERROR(ReadCounts(&tensor_count, &key_count));
  for (std::uint64_t i = 0; i < key_count; ++i) METATTN_RETURN_IF_ERROR(ReadKey());
  for (std::uint64_t i = 0; i < tensor_count; ++i) METATTN_RETURN_IF_ERROR(ReadTensor());
  return PlaceTensors();
}

absl::Status Parser::ReadCounts(std::uint64_t* tensor_count, std::uint64_t* key_count) {
  std::uint32_t magic = 0, version = 0;
  if (!reader_.Read(&magic)) return Ended("the magic number");
  if (magic != kMagic) return Damaged("is not a GGUF file (it does not start with 'GGUF')");
  if (!reader_.Read(&version)) return Ended("the version");
  if (version != kVersion) {
    return absl::UnimplementedError(absl::StrFormat(
        "%s: GGUF version %d is not supported, only little-endian version %d; convert the file",
        name_, version, kVersion));
  }
  if (!reader_.Read(tensor_count) || !reader_.Read(key_count)) return Ended("the counts");
  const std::uint64_t left = reader_.remaining();
  if (*tensor_count > std::min(kMaxTensors, left / kLeastTensorBytes)) {
    return Damaged(absl::StrFormat("the header claims %d tensors, more than the file can hold",
                                   *tensor_count));
  }
  if (*key_count > std::min(kMaxKeys, left / kLeastKeyBytes)) {
    return Damaged(absl::StrFormat(
        "the header claims %d metadata keys, more than the file can hold", *key_count));
  }
  if (*tensor_count == 0) return Damaged("holds no tensors");
  return absl::OkStatus();
}

absl::Status Parser::ReadKey() {
  std::string_view key;
  std::uint32_t type = 0;
  const std::string number = absl::StrFormat("metadata key number %d", metadata.size());
  if (!reader_.ReadString(&key)) return Ended(number);
  if (!IsPlainName(key)) {
    return Damaged(absl::StrFormat("%s is %s, not a printable name", number, Quoted(key)));
  }
  const std::string where = "metadata key " + Quoted(key);
  if (!reader_.Read(&type)) return Ended(where);
  METATTN_ASSIGN_OR_RETURN(Gguf::Value value, ReadValue(type, where));
  if (!metadata.emplace(key, std::move(value)).second) return Damaged(where + " appears twice");
  return absl::OkStatus();
}

absl::StatusOr<Gguf::Value> Parser::ReadValue(std::uint32_t type, const std::string& where) {
  using I = std::int64_t;
  using U = std::uint64_t;
  switch (type) {
    case kU8:
      return ReadNumber<std::uint8_t, U>(where);
    case kI8:
      return ReadNumber<std::int8_t, I>(where);
    case kU16:
      return ReadNumber<std::uint16_t, U>(where);
    case kI16:
      return ReadNumber<std::int16_t, I>(where);
    case kU32:
      return ReadNumber<std::uint32_t, U>(where);
    case kI32:
      return ReadNumber<std::int32_t, I>(where);
    case kU64:
      return ReadNumber<std::uint64_t, U>(where);
    case kI64:
      return ReadNumber<std::int64_t, I>(where);
    case kF32:
      return ReadNumber<float, double>(where);
    case kF64:
      return ReadNumber<double, double>(where);
    case kArray:
      return ReadArray(where);
    case kBool: {
      METATTN_ASSIGN_OR_RETURN(const bool value, ReadBool(where));
      return Gguf::Value(value);
    }
    case kString: {
      METATTN_ASSIGN_OR_RETURN(const std::string_view value, ReadText(where));
      return Gguf::Value(value);
    }
    default:
      return Damaged(absl::StrFormat("%s has the unknown value type %d", where, type));
  }
}

absl::StatusOr<Gguf::Value> Parser::ReadArray(const std::string& where) {
  using I = std::int64_t;
  using U = std::uint64_t;
  std::uint32_t type = 0;
  std::uint64_t count = 0;
  if (!reader_.Read(&type) || !reader_.Read(&count)) return Ended(where);
  if (count > kMaxElements - elements_) {
    return Damaged(absl::StrFormat("%s claims %d elements, too many", where, count));
  }
  elements_ += count;
  switch (type) {
    case kU8:
      return ReadNumbers<std::uint8_t, U>(count, where);
    case kI8:
      return ReadNumbers<std::int8_t, I>(count, where);
    case kU16:
      return ReadNumbers<std::uint16_t, U>(count, where);
    case kI16:
      return ReadNumbers<std::int16_t, I>(count, where);
    case kU32:
      return ReadNumbers<std::uint32_t, U>(count, where);
    case kI32:
      return ReadNumbers<std::int32_t, I>(count, where);
    case kU64:
      return ReadNumbers<std::uint64_t, U>(count, where);
    case kI64:
      return ReadNumbers<std::int64_t, I>(count, where);
    case kF32:
      return ReadNumbers<float, double>(count, where);
    case kF64:
      return ReadNumbers<double, double>(count, where);
    case kBool: {
      std::vector<bool> values;
      for (std::uint64_t i = 0; i < count; ++i) {
        METATTN_ASSIGN_OR_RETURN(const bool value, ReadBool(where));
        values.push_back(value);
      }
      return Gguf::Value(std::move(values));
    }
    case kString: {
      Gguf::Strings values;
      values.reserve(std::min<std::uint64_t>(count, reader_.remaining() / 8));
      for (std::uint64_t i = 0; i < count; ++i) {
        METATTN_ASSIGN_OR_RETURN(const std::string_view value, ReadText(where));
        values.push_back(value);
      }
      return Gguf::Value(std::move(values));
    }
    case kArray:
      return absl::UnimplementedError(
          absl::StrFormat("%s: %s is an array of arrays, which is not supported", name_, where));
    default:
      return Damaged(absl::StrFormat("%s is an array of the unknown type %d", where, type));
  }
}

template <typename Stored, typename Wide>
absl::StatusOr<Gguf::Value> Parser::ReadNumber(const std::string& where) {
  Stored value{};
  if (!reader_.Read(&value)) return Ended(where);
  return Gguf::Value(static_cast<Wide>(value));
}

template <typename Stored, typename Wide>
absl::StatusOr<Gguf::Value> Parser::ReadNumbers(std::uint64_t count, const std::string& where) {
  if (count > reader_.remaining() / sizeof(Stored)) return Ended(where);
  std::vector<Wide> values(static_cast<std::size_t>(count));
  for (Wide& wide : values) {
    Stored value{};
    if (!reader_.Read(&value)) return Ended(where);
    wide = static_cast<Wide>(value);
  }
  return Gguf::Value(std::move(values));
}

absl::StatusOr<bool> Parser::ReadBool(const std::string& where) {
  std::uint8_t value = 0;
  if (!reader_.Read(&value)) return Ended(where);
  if (value > 1) return Damaged(absl::StrFormat("%s is a bool of value %d", where, value));
  return value == 1;
}

absl::StatusOr<std::string_view> Parser::ReadText(const std::string& where) {
  std::string_view text;
  if (!reader_.ReadString(&text)) return Ended(where);
  if (!IsUtf8(text))
    return Damaged(absl::StrFormat("%s holds %s, which is not UTF-8", where, Quoted(text)));
  return text;
}

absl::StatusOr<std::uint64_t> Parser::Alignment() const {
  const auto found = metadata.find("general.alignment");
  if (found == metadata.end()) return 32;
  const auto* value = std::get_if<std::uint64_t>(&found->second);
  if (value == nullptr || !std::has_single_bit(*value) || *value < 8 || *value > kMaxAlignment) {
    return Damaged(
        absl::StrFormat("general.alignment must be a power of two from 8 to %d of an unsigned type",
                        kMaxAlignment));
  }
  return *value;
}

absl::StatusOr<DType> Parser::TensorType(std::uint32_t type, const std::string& where) const {
  const std::string_view name = type < kFileTypes.size() ? kFileTypes[type].name : "unknown";
  if (type < kFileTypes.size() && kFileTypes[type].dtype) return *kFileTypes[type].dtype;
  return absl::UnimplementedError(
      absl::StrFormat("%s: %s has type %s (number %d), which is not supported; use a file with "
                      "f32, f16, bf16, q8_0, q4_0 or q4_1 tensors",
                      name_, where, name, type));
}

absl::Status Parser::ReadTensor() {
  TensorInfo tensor;
  std::string_view name;
  std::uint32_t dimensions = 0, type = 0;
  std::uint64_t offset = 0;
  std::string where = absl::StrFormat("the entry of tensor number %d", tensors.size());
  if (!reader_.ReadString(&name)) return Ended(where);
  if (!IsPlainName(name)) {
    return Damaged(absl::StrFormat("%s is called %s, not a printable name", where, Quoted(name)));
  }
  where = "tensor " + Quoted(name);
  if (!tensor_names_.insert(name).second) return Damaged(where + " appears twice");
  if (!reader_.Read(&dimensions)) return Ended(where);
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    return Damaged(absl::StrFormat("%s has %d dimensions, allowed are 1 to %d", where, dimensions,
                                   kMaxDimensions));
  }
  for (std::uint32_t i = 0; i < dimensions; ++i) {
    std::uint64_t extent = 0;
    if (!reader_.Read(&extent)) return Ended(where);
    // The bound keeps the cast below exact; ByteSize checks products.
    if (extent == 0 || extent > std::uint64_t{1} << 62) {
      return Damaged(absl::StrFormat("%s has a dimension of %d", where, extent));
    }
    tensor.shape.push_back(static_cast<std::int64_t>(extent));
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());  // the file has the innermost first
  if (!reader_.Read(&type) || !reader_.Read(&offset)) return Ended(where);
  METATTN_ASSIGN_OR_RETURN(tensor.dtype, TensorType(type, where));
  tensor.name = name;
  tensors.push_back(std::move(tensor));
  offsets_.push_back(offset);
  return absl::OkStatus();
}

absl::Status Parser::PlaceTensors() {
  METATTN_ASSIGN_OR_RETURN(const std::uint64_t alignment, Alignment());
  const std::size_t header_end = reader_.position();
  const std::size_t data_begin = (header_end + alignment - 1) / alignment * alignment;
  if (data_begin > bytes_.size()) return Ended("the padding before the tensor data");
  for (std::size_t i = header_end; i < data_begin; ++i) {
    if (bytes_[i] != std::byte{0}) {
      return Damaged(
          absl::StrFormat("byte %d is padding before the tensor data and not 0: the "
                          "header is damaged",
                          i));
    }
  }
  return PlaceInData(name_, bytes_.subspan(data_begin), offsets_, alignment, tensors);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Gguf>> Gguf::Parse(std::span<const std::byte> bytes,
                                                  const std::string& name) {
  Parser parser(bytes, name);
  METATTN_RETURN_IF_ERROR(parser.Run());
  auto gguf = std::make_unique<Gguf>();
  gguf->metadata_ = std::move(parser.metadata);
  gguf->tensors_ = std::move(parser.tensors);
  return gguf;
}

}  // namespace metattn
