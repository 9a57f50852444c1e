// Linear, Embed and Pack. Bound of one output: the sum of K products in f32, plus what the level
// rounds before it multiplies, times the sum of magnitudes.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/kernels/support.h"

namespace metattn::testing {
namespace {

struct LinearShape {
  DType dtype;
  std::int64_t tokens, rows, cols;
  bool bias = false;
  bool rounded = false;
};

std::uint16_t Half(const std::byte* p) {
  std::uint16_t v;
  std::memcpy(&v, p, 2);
  return v;
}

// Value `c` of a row, by the definition of the type (kernels/types.h), one value at a time.
double ValueAt(DType dtype, const std::byte* row, std::int64_t c) {
  const std::byte* block = row + c / Info(dtype).block_values * Info(dtype).block_bytes;
  const auto i = static_cast<int>(c % Info(dtype).block_values);
  auto nibble = [&](int header) {
    const int byte = std::to_integer<int>(block[header + i % 16]);
    return static_cast<double>(i < 16 ? byte % 16 : byte / 16);
  };
  float f32;
  switch (dtype) {
    case DType::kF32:
      std::memcpy(&f32, block, 4);
      return f32;
    case DType::kF16:
      return F16ToF32(Half(block));
    case DType::kBF16:
      return Bf16ToF32(Half(block));
    case DType::kQ8_0:
      return double{F16ToF32(Half(block))} * static_cast<std::int8_t>(block[2 + i]);
    case DType::kQ4_0:
      return double{F16ToF32(Half(block))} * (nibble(2) - 8);
    case DType::kQ4_1:
      return double{F16ToF32(Half(block))} * nibble(4) + F16ToF32(Half(block + 2));
    case DType::kI32:
      break;
  }
  return NAN;
}

// Relative rounding of the factors before they are multiplied (weights decoded in f32: 2 u).
double FactorRounding(Rig& rig, std::int64_t) {
  return rig.rounds_in_linear() ? 2 * kBf16 : 2 * kF32;
}

// `rows` rows of `cols` values from `data`, as the file means them.
std::vector<double> Decoded(DType dtype, const std::byte* data, std::int64_t stride_bytes,
                            std::int64_t rows, std::int64_t cols) {
  std::vector<double> values;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < cols; ++c) {
      values.push_back(ValueAt(dtype, data + r * stride_bytes, c));
    }
  }
  return values;
}

class LinearTest : public ::testing::TestWithParam<BackendParam> {};

void CheckLinear(Rig& rig, const LinearShape& shape) {
  SCOPED_TRACE(::testing::Message() << Info(shape.dtype).name << " T " << shape.tokens << " N "
                                    << shape.rows << " K " << shape.cols);
  auto weight = RandomRows(shape.dtype, shape.rows, shape.cols, 1);
  weight.resize(weight.size() + 1);  // rows without columns have an address too
  const auto x = rig.Rounded(Randoms(static_cast<std::size_t>(shape.tokens * shape.cols), 2));
  const auto bias = Randoms(static_cast<std::size_t>(shape.rows), 3);
  const MatrixPart part{shape.dtype, weight.data(), shape.rows, BytesFor(shape.dtype, shape.cols)};
  const auto matrix = rig.kernels().Pack({&part, 1}, shape.cols);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_EQ((*matrix)->rows(), shape.rows);
  EXPECT_EQ((*matrix)->cols(), shape.cols);
  LinearArgs args{.weight = matrix->get(), .x = rig.InActivations(x), .tokens = shape.tokens};
  if (shape.bias) args.bias = rig.In(bias);
  const std::int64_t results = shape.tokens * shape.rows;
  args.rounded = shape.rounded;
  args.out = shape.rounded ? rig.Activations(results) : rig.Floats(results);
  rig.kernels().Linear(args, rig.stream());

  const std::vector<double> w =
      Decoded(shape.dtype, weight.data(), part.row_stride_bytes, shape.rows, shape.cols);
  std::vector<double> expected, bound;
  for (std::int64_t t = 0; t < shape.tokens; ++t) {
    for (std::int64_t r = 0; r < shape.rows; ++r) {
      double sum = shape.bias ? bias[r] : 0, magnitude = std::abs(sum);
      for (std::int64_t c = 0; c < shape.cols; ++c) {
        const double product = w[r * shape.cols + c] * x[t * shape.cols + c];
        sum += product;
        magnitude += std::abs(product);
      }
      expected.push_back(sum);
      bound.push_back(magnitude * (static_cast<double>(shape.cols + 2) * kF32 +
                                   FactorRounding(rig, shape.tokens)));
      if (shape.rounded) bound.back() += (std::abs(sum) + bound.back()) * rig.activation_rounding();
    }
  }
  ExpectWithin(
      shape.rounded ? rig.OutActivations(args.out, results) : rig.Out<float>(args.out, results),
      expected, bound, "linear");
}

TEST_P(LinearTest, EqualsTheSumOfProductsForEveryTypeAndShape) {
  Rig rig(GetParam());
  for (DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    for (std::int64_t tokens : {0, 1, 2, 3, 5, 16, 17, 33, 70}) {
      CheckLinear(rig, {dtype, tokens, 37, 96});
    }
    CheckLinear(rig, {dtype, 1, 1, 32, true});
    CheckLinear(rig, {dtype, 4, 0, 64});
    CheckLinear(rig, {dtype, 7, 130, 576, true});
    CheckLinear(rig, {dtype, 33, 64, 1536});
    CheckLinear(rig, {dtype, 1, 576, 1536});
    CheckLinear(rig, {dtype, 66, 130, 160, true});
    CheckLinear(rig, {dtype, 20, 0, 64});
    for (std::int64_t tokens : {1, 7, 21}) CheckLinear(rig, {dtype, tokens, 19, 64, false, true});
    CheckLinear(rig, {dtype, 21, 19, 64, true, true});
    if (Info(dtype).block_values > 1) continue;
    for (std::int64_t tokens : {3, 21}) {
      for (std::int64_t cols : {0, 4, 40, 45}) CheckLinear(rig, {dtype, tokens, 19, cols, true});
    }
  }
}

TEST_P(LinearTest, PartsOfDifferentTypesAndStridesAreStacked) {
  Rig rig(GetParam());
  const std::int64_t cols = 64, tokens = 23;
  std::vector<std::vector<std::byte>> data;
  std::vector<MatrixPart> parts;
  std::vector<double> expected, bound;
  const auto x = rig.Rounded(Randoms(tokens * cols, 5));
  for (DType dtype : {DType::kQ4_1, DType::kF32, DType::kQ8_0, DType::kQ4_1}) {
    const std::int64_t rows = 11 + static_cast<std::int64_t>(parts.size()) * 16;
    // Every second row of the file belongs to the part.
    data.push_back(RandomRows(dtype, rows * 2, cols, 7 + parts.size()));
    parts.push_back({dtype, data.back().data(), rows, 2 * BytesFor(dtype, cols)});
  }
  const auto matrix = rig.kernels().Pack(parts, cols);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  const std::int64_t rows = (*matrix)->rows();
  ASSERT_EQ(rows, 11 + 27 + 43 + 59);
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (const MatrixPart& part : parts) {
      for (std::int64_t r = 0; r < part.rows; ++r) {
        double sum = 0, magnitude = 0;
        for (std::int64_t c = 0; c < cols; ++c) {
          const double product =
              ValueAt(part.dtype, part.data + r * part.row_stride_bytes, c) * x[t * cols + c];
          sum += product;
          magnitude += std::abs(product);
        }
        expected.push_back(sum);
        bound.push_back(magnitude * ((cols + 2) * kF32 + FactorRounding(rig, tokens)));
      }
    }
  }
  const View out = rig.Floats(tokens * rows);
  rig.kernels().Linear(
      {.weight = matrix->get(), .x = rig.InActivations(x), .out = out, .tokens = tokens},
      rig.stream());
  ExpectWithin(rig.Out<float>(out, tokens * rows), expected, bound, "linear");
}

TEST_P(LinearTest, DeterministicRowsDoNotDependOnTheBatch) {
  BackendParam param = GetParam();
  param.deterministic = true;
  Rig rig(param);
  for (DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kBF16}) {
    const std::int64_t rows = 77, cols = 160, tokens = 67;
    const auto weight = RandomRows(dtype, rows, cols, 11);
    const MatrixPart part{dtype, weight.data(), rows, BytesFor(dtype, cols)};
    const auto matrix = rig.kernels().Pack({&part, 1}, cols);
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    const View x = rig.InActivations(Randoms(tokens * cols, 12));
    const View all = rig.Floats(tokens * rows), single = rig.Floats(tokens * rows);
    rig.kernels().Linear({.weight = matrix->get(), .x = x, .out = all, .tokens = tokens},
                         rig.stream());
    std::int64_t step = 1;
    for (std::int64_t t = 0; t < tokens; t += step, step = step % 5 + 1) {
      const std::int64_t count = std::min(step, tokens - t);
      rig.kernels().Linear(
          {.weight = matrix->get(),
           .x = {x.buffer, static_cast<std::size_t>(BytesFor(rig.activation_dtype(), t * cols))},
           .out = {single.buffer, static_cast<std::size_t>(t * rows * 4)},
           .tokens = count},
          rig.stream());
    }
    ExpectSame(rig.Out<float>(single, tokens * rows), rig.Out<float>(all, tokens * rows),
               std::string(Info(dtype).name));
  }
}

TEST_P(LinearTest, EmbedDecodesRowsAndGivesZerosForIdsOfOtherRanks) {
  Rig rig(GetParam());
  for (DType dtype :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_1}) {
    const std::int64_t rows = 50, cols = 96;
    const auto weight = RandomRows(dtype, rows, cols, 21);
    const MatrixPart part{dtype, weight.data(), rows, BytesFor(dtype, cols)};
    const auto matrix = rig.kernels().Pack({&part, 1}, cols);
    ASSERT_TRUE(matrix.ok()) << matrix.status();
    const std::vector<std::int32_t> ids = {100, 149, 99, 150, 0, 123, 117};
    const auto tokens = static_cast<std::int64_t>(ids.size());
    const View out = rig.Floats(tokens * cols);
    rig.kernels().Embed(
        {.table = matrix->get(), .first_id = 100, .ids = rig.In(ids), .out = out, .tokens = tokens},
        rig.stream());
    std::vector<double> expected, bound;
    for (std::int32_t id : ids) {
      for (std::int64_t c = 0; c < cols; ++c) {
        const bool here = id >= 100 && id < 150;
        expected.push_back(
            here ? ValueAt(dtype, weight.data() + (id - 100) * part.row_stride_bytes, c) : 0);
        // Decoding rounds at most twice, each time within the block's largest value.
        bound.push_back(2 * kF32 * 32);
      }
    }
    ExpectWithin(rig.Out<float>(out, tokens * cols), expected, bound,
                 std::string(Info(dtype).name));
    rig.kernels().Embed({.table = matrix->get(), .ids = rig.In(ids), .out = out}, rig.stream());
  }
}

TEST_P(LinearTest, BytesOfAQuantisedMatrixStayQuantised) {
  Rig rig(GetParam());
  const auto weight = RandomRows(DType::kQ4_1, 64, 576, 31);
  const MatrixPart part{DType::kQ4_1, weight.data(), 64, BytesFor(DType::kQ4_1, 576)};
  const auto matrix = rig.kernels().Pack({&part, 1}, 576);
  ASSERT_TRUE(matrix.ok()) << matrix.status();
  EXPECT_GE((*matrix)->bytes(), 64 * BytesFor(DType::kQ4_1, 576));
  EXPECT_LE((*matrix)->bytes(), 64 * BytesFor(DType::kQ4_1, 576) * 5 / 4);
}

INSTANTIATE_TEST_SUITE_P(Backends, LinearTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
