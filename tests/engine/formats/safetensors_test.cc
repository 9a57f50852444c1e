#include "engine/formats/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "tests/support/safetensors_writer.h"
#include "tests/support/status_matchers.h"

namespace metattn {
namespace {

using test::Fails;
using test::SafetensorsBytes;
using test::Succeeds;
using Code = absl::StatusCode;

absl::StatusOr<std::vector<TensorInfo>> Parse(const std::string& bytes) {
  return ParseSafetensors(std::as_bytes(std::span(bytes)), "f.safetensors");
}

std::string Sound() {
  return SafetensorsBytes({{"a.weight", "BF16", {3, 2}, std::string(12, 'a')},
                           {"b.weight", "F32", {1}, std::string(4, 'b')},
                           {"scalar", "F16", {}, std::string(2, 'c')}});
}

TEST(Safetensors, ReadsTensorsInTheOrderOfTheirData) {
  const std::string bytes = Sound();
  const auto tensors = Parse(bytes);
  ASSERT_THAT(tensors, Succeeds());
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[0].name, "a.weight");
  EXPECT_EQ((*tensors)[0].dtype, DType::kBF16);
  EXPECT_EQ((*tensors)[0].shape, (std::vector<std::int64_t>{3, 2}));
  EXPECT_EQ((*tensors)[0].data.size(), 12u);
  EXPECT_EQ((*tensors)[1].data[0], std::byte{'b'});
  EXPECT_TRUE((*tensors)[2].shape.empty());
  EXPECT_EQ((*tensors)[2].data[1], std::byte{'c'});
}

struct Damage {
  const char* name;
  const char* header;
  std::size_t data_bytes;
  Code code;
  const char* message;
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class DamagedSafetensors : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedSafetensors, IsAnErrorThatNamesThePlace) {
  const Damage& d = GetParam();
  const auto tensors = Parse(SafetensorsBytes(d.header, std::string(d.data_bytes, 'x')));
  EXPECT_THAT(tensors, Fails(d.code, d.message));
  EXPECT_THAT(tensors, Fails(d.code, "f.safetensors: "));
}

constexpr Code kInvalid = Code::kInvalidArgument;

INSTANTIATE_TEST_SUITE_P(
    All, DamagedSafetensors,
    ::testing::Values(
        Damage{"NotJson", "{\"a\":", 0, kInvalid, "not valid JSON"},
        Damage{"NotUtf8", "{\"\xff\":{}}", 0, kInvalid, "not valid JSON"},
        Damage{"NotAnObject", "[1]", 0, kInvalid, "not a JSON object"},
        Damage{"NoTensors", "{}", 0, kInvalid, "no tensors"},
        Damage{"MetadataOnly", R"({"__metadata__":{"format":"pt"}})", 0, kInvalid, "no tensors"},
        Damage{"MetadataNotText", R"({"__metadata__":{"format":1}})", 0, kInvalid, "__metadata__"},
        Damage{"EntryNotAnObject", R"({"t":3})", 0, kInvalid, "tensor 't'"},
        Damage{"NameTwice",
               R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
               R"("t":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
               8, kInvalid, "'t' twice"},
        Damage{"FieldTwice",
               R"({"t":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,4]}})", 4,
               kInvalid, "'dtype' twice"},
        Damage{"FieldUnknown", R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}})", 4,
               kInvalid, "unknown field 'x'"},
        Damage{"NameUnprintable", R"({"t\n":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
               kInvalid, "'t\\n' has no printable name"},
        Damage{"TypeMissing", R"({"t":{"shape":[1],"data_offsets":[0,4]}})", 4, kInvalid,
               "tensor 't' has no 'dtype'"},
        Damage{"TypeNotSupported", R"({"t":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})",
               4, Code::kUnimplemented, "tensor 't' has type 'F8_E4M3'"},
        Damage{"ShapeMissing", R"({"t":{"dtype":"F32","data_offsets":[0,4]}})", 4, kInvalid,
               "'t' has no list 'shape'"},
        Damage{"ShapeNegative", R"({"t":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4,
               kInvalid, "'shape' holds"},
        Damage{"ShapeFraction", R"({"t":{"dtype":"F32","shape":[1.5],"data_offsets":[0,4]}})", 4,
               kInvalid, "'shape' holds"},
        Damage{"ShapeZero", R"({"t":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}})", 0,
               kInvalid, "'t': the shape [0]"},
        Damage{"ShapeNineDeep",
               R"({"t":{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}})", 4,
               kInvalid, "'t' has no list 'shape' of at most 8"},
        Damage{"ProductOverflows",
               R"({"t":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
               kInvalid, "'t': the shape"},
        Damage{"BytesOverflow",
               R"({"t":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0,
               kInvalid, "'t': the shape"},
        Damage{"NumberTooLarge",
               R"({"t":{"dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,4]}})", 4,
               kInvalid, "'shape' holds"},
        Damage{"OffsetsBackwards", R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", 4,
               kInvalid, "'data_offsets' do not span the 4 bytes"},
        Damage{"OffsetsOfOne", R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0]}})", 4,
               kInvalid, "'data_offsets'"},
        Damage{"SizeDisagrees", R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4,
               kInvalid, "do not span the 8 bytes"},
        Damage{"PastEnd", R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4, kInvalid,
               "'t': its 8 bytes at offset 0 go past the end"},
        Damage{"Overlap",
               R"({"s":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
               R"("t":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
               6, kInvalid, "'t': it overlaps"},
        Damage{"Gap",
               R"({"s":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
               R"("t":{"dtype":"F32","shape":[1],"data_offsets":[5,9]}})",
               9, kInvalid, "'t': 1 bytes before it"},
        Damage{"TrailingBytes", R"({"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5,
               kInvalid, "the last 1 bytes"}),
    [](const auto& info) { return info.param.name; });

TEST(Safetensors, TooShortOrWithAnImpossibleHeaderLengthIsAnError) {
  EXPECT_THAT(Parse(std::string(7, '\0')), Fails(kInvalid, "7 bytes are too few"));
  EXPECT_THAT(Parse(std::string(8, '\0')), Fails(kInvalid, "not valid JSON"));
  EXPECT_THAT(Parse(std::string(8, '\xff')), Fails(kInvalid, "claims a header of"));
  EXPECT_THAT(Parse(std::string("\x10\0\0\0\0\0\0\0{}", 10)),
              Fails(kInvalid, "header of 16 bytes"));
}

TEST(Safetensors, NestingWithoutEndIsAnErrorNotACrash) {
  const std::string deep = "{\"t\":" + std::string(2'000'000, '[');
  EXPECT_THAT(Parse(SafetensorsBytes(deep, "")), Fails(kInvalid, "f.safetensors: "));
  const std::string closed = "{\"t\":" + std::string(100, '[') + std::string(100, ']') + "}";
  EXPECT_THAT(Parse(SafetensorsBytes(closed, "")), Fails(kInvalid, "nested deeper than 64"));
}

TEST(Safetensors, TruncatedAnywhereIsAnError) {
  const std::string bytes = Sound();
  for (std::size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_THAT(Parse(bytes.substr(0, size)), Fails(kInvalid, "f.safetensors: ")) << size;
  }
}

TEST(Safetensors, AFlippedHeaderBitIsAnErrorUnlessItFallsInANameOrNote) {
  const std::string bytes = Sound();
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  for (std::size_t bit = 0; bit < (8 + length) * 8; ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    const auto tensors = Parse(damaged);
    if (!tensors.ok()) continue;
    // A character of a name or of the note under __metadata__: all that is left.
    ASSERT_EQ(tensors->size(), 3u) << bit;
    EXPECT_EQ((*tensors)[0].shape, (std::vector<std::int64_t>{3, 2})) << bit;
    EXPECT_EQ((*tensors)[0].dtype, DType::kBF16) << bit;
    EXPECT_EQ((*tensors)[1].dtype, DType::kF32) << bit;
    EXPECT_EQ((*tensors)[2].dtype, DType::kF16) << bit;
  }
}

}  // namespace
}  // namespace metattn
