// Norm, SwiGlu, Gather, ArgMax: row-wise ops.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/kernels/support.h"

namespace metattn::testing {
namespace {

class ElementwiseTest : public ::testing::TestWithParam<BackendParam> {};

TEST_P(ElementwiseTest, NormAddsTheDeltaAndScalesByTheRootMeanSquare) {
  Rig rig(GetParam());
  for (std::int64_t dim : {1, 7, 16, 33, 576}) {
    for (std::int64_t tokens : {0, 1, 5, 70}) {
      for (bool with_delta : {false, true}) {
        const auto x = Randoms(tokens * dim, 1, 3.0f), delta = Randoms(tokens * dim, 2);
        const auto weight = Randoms(dim, 3);
        NormArgs args{.residual = rig.In(x),
                      .weight = rig.In(weight),
                      .out = rig.Activations(tokens * dim),
                      .tokens = tokens,
                      .dim = dim,
                      .eps = 1e-5f};
        if (with_delta) args.delta = rig.In(delta);
        rig.kernels().Norm(args, rig.stream());
        std::vector<float> residual;
        std::vector<double> expected, bound;
        for (std::int64_t t = 0; t < tokens; ++t) {
          double squares = 0;
          for (std::int64_t i = t * dim; i < (t + 1) * dim; ++i) {
            residual.push_back(with_delta ? x[i] + delta[i] : x[i]);
            squares += std::pow(double{residual.back()}, 2);
          }
          const double rms = std::sqrt(squares / static_cast<double>(dim) + double{1e-5f});
          for (std::int64_t i = 0; i < dim; ++i) {
            expected.push_back(residual[t * dim + i] / rms * weight[i]);
            // Half the relative error of a positive sum of dim terms, and a few roundings.
            const double sum = (static_cast<double>(dim) / 2 + 6) * kF32;
            bound.push_back(std::abs(expected.back()) * (sum + rig.activation_rounding()));
          }
        }
        ExpectSame(rig.Out<float>(args.residual, tokens * dim), residual, "residual");
        ExpectWithin(rig.OutActivations(args.out, tokens * dim), expected, bound, "norm");
      }
    }
  }
}

TEST_P(ElementwiseTest, NormOfZerosIsZero) {
  Rig rig(GetParam());
  const std::vector<float> zeros(40, 0.0f), weight(20, 2.0f);
  const View out = rig.Activations(40);
  rig.kernels().Norm(
      {.residual = rig.In(zeros), .weight = rig.In(weight), .out = out, .tokens = 2, .dim = 20},
      rig.stream());
  ExpectSame(rig.OutActivations(out, 40), zeros, "norm");
}

TEST_P(ElementwiseTest, SwiGluIsGateTimesItsSigmoidTimesUp) {
  Rig rig(GetParam());
  for (std::int64_t dim : {1, 15, 16, 50, 1536}) {
    for (std::int64_t tokens : {0, 1, 3, 20}) {
      auto gate_up = Randoms(tokens * 2 * dim, 4, 4.0f);
      if (tokens > 1) {  // where exp overflows and underflows
        gate_up[0] = -100.0f;
        gate_up[2 * dim] = 100.0f;
      }
      gate_up = rig.Rounded(gate_up);
      const View out = rig.Activations(tokens * dim);
      rig.kernels().SwiGlu(
          {.gate_up = rig.InActivations(gate_up), .out = out, .tokens = tokens, .dim = dim},
          rig.stream());
      std::vector<double> expected, bound;
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t i = 0; i < dim; ++i) {
          const double gate = gate_up[t * 2 * dim + i], up = gate_up[t * 2 * dim + dim + i];
          expected.push_back(gate / (1 + std::exp(-gate)) * up);
          // exp, one sum, one division, two products; below f32's normal range nothing is promised.
          const double relative = kExp + 5 * kF32 + rig.activation_rounding();
          bound.push_back(std::abs(expected.back()) * relative + std::abs(up) * 1e-36);
        }
      }
      ExpectWithin(rig.OutActivations(out, tokens * dim), expected, bound, "swiglu");
    }
  }
}

TEST_P(ElementwiseTest, GatherCopiesRows) {
  Rig rig(GetParam());
  const std::int64_t dim = 37;
  const auto x = rig.Rounded(Randoms(9 * dim, 5));
  const std::vector<std::int32_t> rows = {8, 0, 3, 3};
  const View out = rig.Activations(4 * dim), in = rig.InActivations(x);
  rig.kernels().Gather({.x = in, .rows = rig.In(rows), .out = out, .count = 4, .dim = dim},
                       rig.stream());
  std::vector<float> expected;
  for (std::int32_t r : rows) {
    expected.insert(expected.end(), x.begin() + r * dim, x.begin() + (r + 1) * dim);
  }
  ExpectSame(rig.OutActivations(out, 4 * dim), expected, "gather");
  rig.kernels().Gather({.x = in, .out = out, .count = 0, .dim = dim}, rig.stream());
}

TEST_P(ElementwiseTest, ArgMaxIsTheFirstOfTheLargest) {
  Rig rig(GetParam());
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const std::int64_t dim : {1, 5, 64, 1023, 1025, 5000}) {
    std::vector<float> x = Randoms(7 * dim, 6);
    const auto row = [&](std::int64_t r) { return std::span(x).subspan(r * dim, dim); };
    row(1).back() = row(1)[dim / 2] = row(1)[dim / 3] = 90;  // equal ones
    for (float& v : row(2)) v = -kInf;
    for (float& v : row(3)) v = kNan;
    row(4).back() = kInf;
    row(5)[0] = kNan;
    for (float& v : row(6)) v = v - 100;  // none above zero
    const View out = rig.Space(7 * sizeof(Largest));
    rig.kernels().ArgMax({.x = rig.In(x), .out = out, .rows = 7, .dim = dim}, rig.stream());
    const auto got = rig.Out<Largest>(out, 7);
    for (std::int64_t r = 0; r < 7; ++r) {
      Largest expected = {-kInf, 0};
      for (std::int64_t i = 0; i < dim; ++i) {
        if (row(r)[i] > expected.value) expected = {row(r)[i], static_cast<std::int32_t>(i)};
      }
      EXPECT_EQ(got[r].value, expected.value) << "row " << r << " of " << dim;
      EXPECT_EQ(got[r].index, expected.index) << "row " << r << " of " << dim;
    }
  }
}

TEST_P(ElementwiseTest, ArgMaxOfNothing) {
  Rig rig(GetParam());
  const View out = rig.Space(2 * sizeof(Largest));
  rig.kernels().ArgMax({.out = out, .rows = 2, .dim = 0}, rig.stream());
  for (const Largest& got : rig.Out<Largest>(out, 2)) {
    EXPECT_EQ(got.value, -std::numeric_limits<float>::infinity());
    EXPECT_EQ(got.index, 0);
  }
  rig.kernels().ArgMax({.dim = 9}, rig.stream());
}

INSTANTIATE_TEST_SUITE_P(Backends, ElementwiseTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
