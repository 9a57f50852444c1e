#include "engine/formats/gguf.h"

#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/gguf_writer.h"
#include "tests/support/status_matchers.h"

namespace metattn {
namespace {

using test::Fails;
using test::GgufWriter;
using test::Succeeds;
using Code = absl::StatusCode;

absl::StatusOr<std::unique_ptr<Gguf>> Parse(const std::string& bytes) {
  return Gguf::Parse(std::as_bytes(std::span(bytes)), "file.gguf");
}

// Three tensors of 128, 4 and 40 bytes.
GgufWriter Sound() {
  GgufWriter w;
  w.Text("general.architecture", "llama");
  w.U32("llama.block_count", 7);
  w.Add("a", {4, 8}, DType::kF32, std::string(128, 'a'));
  w.Add("b", {1}, DType::kF32, std::string(4, 'b'));
  w.Add("c", {2, 32}, DType::kQ4_1, std::string(40, 'c'));
  return w;
}

TEST(Gguf, ReadsNamesShapesTypesAndBytes) {
  const std::string bytes = Sound().Bytes();
  const auto gguf = Parse(bytes);
  ASSERT_THAT(gguf, Succeeds());
  const auto& tensors = (*gguf)->tensors();
  ASSERT_EQ(tensors.size(), 3u);
  EXPECT_EQ(tensors[0].name, "a");
  EXPECT_EQ(tensors[0].shape, (std::vector<std::int64_t>{4, 8}));
  EXPECT_EQ(tensors[2].dtype, DType::kQ4_1);
  ASSERT_EQ(tensors[2].data.size(), 40u);
  EXPECT_EQ(tensors[2].data[39], std::byte{'c'});
  EXPECT_EQ(tensors[1].data[0], std::byte{'b'});
}

template <typename T>
std::string Pod(T value) {
  std::string bytes(sizeof(T), '\0');
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

TEST(Gguf, WidensEveryKindOfValue) {
  GgufWriter w = Sound();
  w.Raw("u8", GgufWriter::kU8, Pod<std::uint8_t>(200));
  w.Raw("i8", GgufWriter::kI8, Pod<std::int8_t>(-3));
  w.Raw("u16", GgufWriter::kU16, Pod<std::uint16_t>(60000));
  w.Raw("i16", GgufWriter::kI16, Pod<std::int16_t>(-300));
  w.Raw("i32", GgufWriter::kI32, Pod<std::int32_t>(-70000));
  w.Raw("u64", GgufWriter::kU64, Pod(std::numeric_limits<std::uint64_t>::max()));
  w.Raw("i64", GgufWriter::kI64, Pod(std::numeric_limits<std::int64_t>::min()));
  w.Raw("f64", GgufWriter::kF64, Pod(0.1));
  w.F32("f32", 0.5f);
  w.Bool("yes", true);
  w.Texts("texts", {"x", "", "\xc4\xa0y"});
  w.I32s("i32s", {-1, 2});
  w.F32s("f32s", {0.25f});
  w.Raw("u8s", GgufWriter::kArray,
        Pod<std::uint32_t>(GgufWriter::kU8) + Pod<std::uint64_t>(2) + "\1\2");
  w.Raw("bools", GgufWriter::kArray,
        Pod<std::uint32_t>(GgufWriter::kBool) + Pod<std::uint64_t>(2) + std::string("\0\1", 2));
  const std::string bytes = w.Bytes();
  const auto parsed = Parse(bytes);
  ASSERT_THAT(parsed, Succeeds());
  const Gguf& g = **parsed;
  EXPECT_EQ(g.Int("u8"), 200);
  EXPECT_EQ(g.Int("i8"), -3);
  EXPECT_EQ(g.Int("u16"), 60000);
  EXPECT_EQ(g.Int("i16"), -300);
  EXPECT_EQ(g.Int("i32"), -70000);
  EXPECT_EQ(g.Int("u64"), std::nullopt) << "does not fit";
  EXPECT_EQ(g.Int("i64"), std::numeric_limits<std::int64_t>::min());
  EXPECT_EQ(g.Float("f64"), 0.1);
  EXPECT_EQ(g.Float("f32"), 0.5);
  EXPECT_EQ(g.Float("u8"), 200.0);
  EXPECT_EQ(g.Float("i64"), std::nullopt) << "not exact";
  EXPECT_EQ(g.Int("f32"), std::nullopt);
  EXPECT_EQ(g.Bool("yes"), true);
  EXPECT_EQ(g.Bool("u8"), std::nullopt);
  EXPECT_EQ(g.String("general.architecture"), "llama");
  EXPECT_EQ(g.String("absent"), std::nullopt);
  ASSERT_NE(g.StringArray("texts"), nullptr);
  EXPECT_EQ(*g.StringArray("texts"), (Gguf::Strings{"x", "", "\xc4\xa0y"}));
  EXPECT_EQ(g.StringArray("i32s"), nullptr);
  EXPECT_EQ(g.IntArray("i32s"), (std::vector<std::int64_t>{-1, 2}));
  EXPECT_EQ(g.IntArray("u8s"), (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(g.FloatArray("f32s"), (std::vector<double>{0.25}));
  EXPECT_EQ(g.IntArray("f32s"), std::nullopt);
  EXPECT_EQ(std::get<std::vector<bool>>(g.metadata().at("bools")),
            (std::vector<bool>{false, true}));
}

TEST(Gguf, FollowsItsAlignment) {
  GgufWriter w = Sound();
  w.U32("general.alignment", 256);
  w.alignment = 256;
  const std::string bytes = w.Bytes();
  const auto gguf = Parse(bytes);
  ASSERT_THAT(gguf, Succeeds());
  EXPECT_EQ((*gguf)->tensors()[1].data[0], std::byte{'b'});
}

struct Damage {
  const char* name;
  Code code;
  const char* message;  // must be part of the error
  std::function<void(GgufWriter&)> make;
};

void PrintTo(const Damage& damage, std::ostream* out) { *out << damage.name; }

class DamagedGguf : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedGguf, IsAnErrorThatNamesThePlace) {
  GgufWriter w = Sound();
  GetParam().make(w);
  const auto parsed = Parse(w.Bytes());
  EXPECT_THAT(parsed, Fails(GetParam().code, GetParam().message));
  EXPECT_THAT(parsed, Fails(GetParam().code, "file.gguf: "));
}

constexpr Code kInvalid = Code::kInvalidArgument;
constexpr Code kUnimplemented = Code::kUnimplemented;

INSTANTIATE_TEST_SUITE_P(
    Header, DamagedGguf,
    ::testing::Values(
        Damage{"Magic", kInvalid, "not a GGUF file", [](GgufWriter& w) { w.magic = "GGUf"; }},
        Damage{"Version2", kUnimplemented, "version 2", [](GgufWriter& w) { w.version = 2; }},
        Damage{"BigEndian", kUnimplemented, "version 50331648",
               [](GgufWriter& w) { w.version = 0x03000000; }},
        Damage{"TensorCountHuge", kInvalid, "claims 18446744073709551615 tensors",
               [](GgufWriter& w) { w.tensor_count = ~0ull; }},
        Damage{"TensorCountZero", kInvalid, "no tensors",
               [](GgufWriter& w) { w.tensor_count = 0; }},
        Damage{"TensorCountSmaller", kInvalid, "padding",
               [](GgufWriter& w) { w.tensor_count = 2; }},
        Damage{"TensorCountLarger", kInvalid, "", [](GgufWriter& w) { w.tensor_count = 4; }},
        Damage{"KeyCountHuge", kInvalid, "claims 9223372036854775808 metadata keys",
               [](GgufWriter& w) { w.key_count = 1ull << 63; }},
        Damage{"KeyCountSmaller", kInvalid, "", [](GgufWriter& w) { w.key_count = 1; }},
        Damage{"KeyCountLarger", kInvalid, "", [](GgufWriter& w) { w.key_count = 3; }}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Metadata, DamagedGguf,
    ::testing::Values(
        Damage{"KeyTwice", kInvalid, "'llama.block_count' appears twice",
               [](GgufWriter& w) { w.U32("llama.block_count", 7); }},
        Damage{"KeyEmpty", kInvalid, "key number 2 is ''", [](GgufWriter& w) { w.U32("", 7); }},
        Damage{"KeyUnprintable", kInvalid, "'a\\nb'", [](GgufWriter& w) { w.U32("a\nb", 7); }},
        Damage{"TypeUnknown", kInvalid, "'k' has the unknown value type 13",
               [](GgufWriter& w) { w.Raw("k", 13, "1234"); }},
        Damage{"BoolOfTwo", kInvalid, "'k' is a bool of value 2",
               [](GgufWriter& w) { w.Raw("k", GgufWriter::kBool, "\2"); }},
        Damage{"TextNotUtf8", kInvalid, "'k' holds '\\x80', which is not UTF-8",
               [](GgufWriter& w) { w.Text("k", "\x80"); }},
        Damage{
            "TextPastEnd", kInvalid, "ends inside metadata key 'k'",
            [](GgufWriter& w) { w.Raw("k", GgufWriter::kString, Pod<std::uint64_t>(1u << 20)); }},
        Damage{"TextLengthWraps", kInvalid, "ends inside metadata key 'k'",
               [](GgufWriter& w) { w.Raw("k", GgufWriter::kString, Pod(~0ull)); }},
        Damage{"ArrayTooLong", kInvalid, "'k' claims 4611686018427387904 elements",
               [](GgufWriter& w) {
                 w.Raw("k", GgufWriter::kArray,
                       Pod<std::uint32_t>(GgufWriter::kU32) + Pod(std::uint64_t{1} << 62));
               }},
        Damage{"ArrayPastEnd", kInvalid, "ends inside metadata key 'k'",
               [](GgufWriter& w) {
                 w.Raw("k", GgufWriter::kArray,
                       Pod<std::uint32_t>(GgufWriter::kF64) + Pod<std::uint64_t>(1000));
               }},
        Damage{"TextsPastEnd", kInvalid, "ends inside metadata key 'k'",
               [](GgufWriter& w) {
                 w.Raw("k", GgufWriter::kArray,
                       Pod<std::uint32_t>(GgufWriter::kString) + Pod<std::uint64_t>(1000000) +
                           std::string(80, '\0'));
               }},
        Damage{"ArrayOfArrays", kUnimplemented, "'k' is an array of arrays",
               [](GgufWriter& w) {
                 w.Raw("k", GgufWriter::kArray,
                       Pod<std::uint32_t>(GgufWriter::kArray) + Pod<std::uint64_t>(1));
               }},
        Damage{"ArrayOfUnknown", kInvalid, "array of the unknown type 99",
               [](GgufWriter& w) {
                 w.Raw("k", GgufWriter::kArray, Pod<std::uint32_t>(99) + Pod<std::uint64_t>(1));
               }},
        Damage{"AlignmentOdd", kInvalid, "general.alignment",
               [](GgufWriter& w) { w.U32("general.alignment", 24); }},
        Damage{"AlignmentZero", kInvalid, "general.alignment",
               [](GgufWriter& w) { w.U32("general.alignment", 0); }},
        Damage{"AlignmentText", kInvalid, "general.alignment",
               [](GgufWriter& w) { w.Text("general.alignment", "32"); }}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Tensors, DamagedGguf,
    ::testing::Values(
        Damage{"NameTwice", kInvalid, "tensor 'a' appears twice",
               [](GgufWriter& w) { w.tensors[1].name = "a"; }},
        Damage{"NameEmpty", kInvalid, "tensor number 1 is called ''",
               [](GgufWriter& w) { w.tensors[1].name = ""; }},
        Damage{"NameUnprintable", kInvalid, "called '\\x01'",
               [](GgufWriter& w) { w.tensors[1].name = "\1"; }},
        Damage{"NoDimensions", kInvalid, "'b' has 0 dimensions",
               [](GgufWriter& w) { w.tensors[1].shape = {}; }},
        Damage{"FiveDimensions", kInvalid, "'b' has 5 dimensions",
               [](GgufWriter& w) {
                 w.tensors[1].shape = {1, 1, 1, 1, 1};
               }},
        Damage{"DimensionZero", kInvalid, "'b' has a dimension of 0",
               [](GgufWriter& w) { w.tensors[1].shape = {0}; }},
        Damage{"DimensionHuge", kInvalid, "'b' has a dimension of 18446744073709551615",
               [](GgufWriter& w) { w.tensors[1].shape = {~0ull}; }},
        Damage{"ProductOverflows", kInvalid, "'b': the shape [4294967296, 4294967296] is too large",
               [](GgufWriter& w) {
                 w.tensors[1].shape = {1ull << 32, 1ull << 32};
               }},
        Damage{"ProductWrapsToTheRightSize", kInvalid, "'b': the shape",
               [](GgufWriter& w) {
                 w.tensors[1].shape = {1ull << 62, 4};
               }},
        Damage{"BytesOverflow", kInvalid, "'b': the shape [4611686018427387904] is too large",
               [](GgufWriter& w) { w.tensors[1].shape = {1ull << 62}; }},
        Damage{"TypeNotSupported", kUnimplemented, "tensor 'b' has type q6_k (number 14)",
               [](GgufWriter& w) { w.tensors[1].type = 14; }},
        Damage{"TypeUnknown", kUnimplemented, "tensor 'b' has type unknown (number 1000)",
               [](GgufWriter& w) { w.tensors[1].type = 1000; }},
        Damage{"RowNotWholeBlocks", kInvalid, "tensor 'c': a row of 16 values",
               [](GgufWriter& w) {
                 w.tensors[2].shape = {4, 16};
               }},
        Damage{"OffsetUnaligned", kInvalid, "'b': its offset 129 is not a multiple of 32",
               [](GgufWriter& w) { w.tensors[1].offset = 129; }},
        Damage{"OffsetPastEnd", kInvalid,
               "tensor 'b': its 4 bytes at offset 1048576 go past the end",
               [](GgufWriter& w) { w.tensors[1].offset = 1u << 20; }},
        Damage{"OffsetWraps", kInvalid, "'b': its 4 bytes at offset 18446744073709551584",
               [](GgufWriter& w) { w.tensors[1].offset = ~0ull - 31; }},
        Damage{"Overlap", kInvalid, "'b': it overlaps",
               [](GgufWriter& w) { w.tensors[1].offset = 96; }},
        Damage{"SameOffset", kInvalid, "it overlaps",
               [](GgufWriter& w) { w.tensors[1].offset = 0; }},
        Damage{"Gap", kInvalid, "'c': 92 bytes before it belong to no tensor",
               [](GgufWriter& w) { w.tensors[1].data.resize(68); }},
        Damage{"TrailingBytes", kInvalid, "the last 88 bytes belong to no tensor",
               [](GgufWriter& w) { w.tensors[2].data.resize(104); }}),
    [](const auto& info) { return info.param.name; });

TEST(Gguf, TruncatedAnywhereIsAnError) {
  const std::string bytes = Sound().Bytes();
  // The last tensor ends 24 bytes before the padded end; up to there every byte is needed.
  for (std::size_t size = 0; size + 24 < bytes.size(); ++size) {
    EXPECT_THAT(Parse(bytes.substr(0, size)), Fails(kInvalid, "file.gguf: ")) << size;
  }
}

TEST(Gguf, AnyFlippedHeaderBitIsAnErrorOrAnotherValueButNeverMore) {
  const GgufWriter w = Sound();
  const std::string bytes = w.Bytes();
  const std::size_t header = w.Header().size();
  int accepted = 0;
  for (std::size_t bit = 0; bit < header * 8; ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << (bit % 8)));
    const auto gguf = Parse(damaged);
    if (!gguf.ok()) continue;
    ++accepted;
    for (const TensorInfo& tensor : (*gguf)->tensors()) {
      ASSERT_GE(tensor.data.data(), reinterpret_cast<const std::byte*>(damaged.data() + header));
      ASSERT_LE(tensor.data.data() + tensor.data.size(),
                reinterpret_cast<const std::byte*>(damaged.data() + damaged.size()));
    }
  }
  // What remains are flips inside keys, names, texts and numbers, which the format cannot tell:
  // 'llama', 'general.architecture', 'llama.block_count', its value and type, 'a', 'b' and 'c'.
  const int kFree = 5 + 20 + 17 + 4 + 4 + 3 + 16;
  EXPECT_LT(accepted, kFree * 8);
  EXPECT_GT(accepted, 0);
}

}  // namespace
}  // namespace metattn
