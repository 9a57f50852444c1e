// RopeAppend: q as returned; k and v as a softmax over one position reads them back from the page.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "tests/kernels/support.h"

namespace metattn::testing {
namespace {

struct RopeShape {
  int heads = 2, group = 3, head_dim = 64, rotary_dim = 64;
  bool interleaved = false, norm = false;
  int start = 0, rows = 1;
};

class RopeAppendTest : public ::testing::TestWithParam<BackendParam> {};

// (cos, sin) of position p and pair i, any numbers will do as long as they are what is applied.
std::vector<float> Table(int positions, int rotary_dim) {
  std::vector<float> table;
  for (int p = 0; p < positions; ++p) {
    for (int i = 0; i < rotary_dim / 2; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / rotary_dim);
      table.push_back(static_cast<float>(std::cos(angle)));
      table.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  return table;
}

// One head after norm and rotation, and the bound of f32 arithmetic on it.
void Rotate(const RopeShape& shape, const float* x, const float* weight, const float* cos_sin,
            std::vector<double>* out, std::vector<double>* bound) {
  const int d = shape.head_dim, half = shape.rotary_dim / 2;
  double squares = 0;
  for (int i = 0; i < d; ++i) squares += double{x[i]} * x[i];
  const double rms = std::sqrt(squares / d + double{1e-6f});
  std::vector<double> y(static_cast<std::size_t>(d)), magnitude(y), z(y);
  for (int i = 0; i < d; ++i) y[i] = shape.norm ? x[i] / rms * weight[i] : x[i];
  z = y;
  for (int i = 0; i < d; ++i) magnitude[i] = std::abs(y[i]);
  for (int i = 0; i < half; ++i) {
    const int a = shape.interleaved ? 2 * i : i, b = shape.interleaved ? 2 * i + 1 : i + half;
    const double c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
    z[a] = y[a] * c - y[b] * s;
    z[b] = y[b] * c + y[a] * s;
    magnitude[a] = std::abs(y[a] * c) + std::abs(y[b] * s);
    magnitude[b] = std::abs(y[b] * c) + std::abs(y[a] * s);
  }
  out->insert(out->end(), z.begin(), z.end());
  for (double value : magnitude) bound->push_back(value * (shape.norm ? d / 2.0 + 9 : 3) * kF32);
}

// Reads position `p` of a page back: with a near window of one position m is q.k and o is v; unit
// vectors as queries give k value by value.
void ReadBack(Rig& rig, const RopeShape& shape, AttentionRows rows, const PageTable& pages,
              std::vector<float>* k, std::vector<float>* v) {
  const int d = shape.head_dim, q_heads = shape.heads * d;  // a group of d unit vectors
  const auto tokens = rows.tokens;
  std::vector<float> units(static_cast<std::size_t>(tokens * q_heads * d), 0.0f);
  for (std::int64_t i = 0; i < tokens * q_heads; ++i) units[i * d + i % d] = 1.0f;
  const Partial partial = {.o = rig.Floats(tokens * q_heads * d),
                           .m = rig.Floats(tokens * q_heads),
                           .l = rig.Floats(tokens * q_heads)};
  rows.near_begin = rows.position;
  rows.sinks = 0;
  rig.kernels().Near(
      {.rows = rows, .pages = pages, .group = d, .scale = 1.0f, .q = rig.In(units), .out = partial},
      rig.stream());
  *k = rig.Out<float>(partial.m, tokens * q_heads);
  const auto o = rig.Out<float>(partial.o, tokens * q_heads * d);
  for (std::int64_t head = 0; head < tokens * shape.heads; ++head) {
    v->insert(v->end(), o.begin() + head * d * d, o.begin() + head * d * d + d);
  }
  for (float l : rig.Out<float>(partial.l, tokens * q_heads)) EXPECT_EQ(l, 1.0f);
}

// One sequence's rows from shape.start on, its blocks swapped in pairs.
AttentionRows RowsOf(Rig& rig, const RopeShape& shape) {
  std::vector<std::int32_t> position(static_cast<std::size_t>(shape.rows));
  std::iota(position.begin(), position.end(), shape.start);
  std::vector<std::int32_t> blocks;
  for (int b = 0; b <= (shape.start + shape.rows) / kBlockTokens; ++b) blocks.push_back(b ^ 1);
  const View zeros = rig.In(std::vector<std::int32_t>(static_cast<std::size_t>(shape.rows)));
  return {.tokens = shape.rows,
          .sequences = 1,
          .position = rig.In(position),
          .sequence = zeros,
          .row_begin = rig.In(std::vector<std::int32_t>{0, shape.rows}),
          .near_begin = zeros,
          .far_end = zeros,
          .table_begin = rig.In(std::vector<std::int32_t>{0, static_cast<int>(blocks.size())}),
          .blocks = rig.In(blocks)};
}

void CheckRope(Rig& rig, const RopeShape& shape) {
  SCOPED_TRACE(::testing::Message()
               << "d " << shape.head_dim << " rotary " << shape.rotary_dim << " g " << shape.group
               << " rows " << shape.start << "+" << shape.rows
               << (shape.interleaved ? " interleaved" : "") << (shape.norm ? " norm" : ""));
  const int d = shape.head_dim, q_heads = shape.heads * shape.group;
  const int width = (q_heads + 2 * shape.heads) * d, length = shape.start + shape.rows;
  const AttentionRows rows = RowsOf(rig, shape);
  const std::int64_t page = rig.kernels().PageBytes(d);
  const PageTable pages = {
      .base = rig.Space(static_cast<std::size_t>(page) * shape.heads * (length / kBlockTokens + 2)),
      .block_stride = shape.heads,
      .heads = shape.heads,
      .head_dim = d};
  const auto qkv = Randoms(static_cast<std::size_t>(shape.rows) * width, 1);
  const auto q_norm = Randoms(d, 2), k_norm = Randoms(d, 3);
  const auto table = Table(length, shape.rotary_dim);
  RopeAppendArgs args = {.rows = rows,
                         .pages = pages,
                         .group = shape.group,
                         .qkv = rig.In(qkv),
                         .cos_sin = rig.In(table),
                         .rotary_dim = shape.rotary_dim,
                         .interleaved = shape.interleaved,
                         .q = rig.Floats(std::int64_t{shape.rows} * q_heads * d)};
  if (shape.norm) args.q_norm = rig.In(q_norm), args.k_norm = rig.In(k_norm);
  rig.kernels().RopeAppend(args, rig.stream());

  std::vector<double> q, q_bound, k, k_bound;
  std::vector<float> v;
  for (int t = 0; t < shape.rows; ++t) {
    const float* cos_sin = table.data() + (shape.start + t) * shape.rotary_dim;
    for (int h = 0; h < q_heads + shape.heads; ++h) {
      const bool is_q = h < q_heads;
      Rotate(shape, qkv.data() + t * width + h * d, is_q ? q_norm.data() : k_norm.data(), cos_sin,
             is_q ? &q : &k, is_q ? &q_bound : &k_bound);
    }
    for (int i = 0; i < shape.heads * d; ++i) {
      v.push_back(Bf16ToF32(F32ToBf16(qkv[t * width + (q_heads + shape.heads) * d + i])));
    }
  }
  ExpectWithin(rig.Out<float>(args.q, std::int64_t{shape.rows} * q_heads * d), q, q_bound, "q");
  if (shape.rows == 0) return;
  for (std::size_t i = 0; i < k.size(); ++i) k_bound[i] += std::abs(k[i]) * kBf16;
  std::vector<float> stored_k, stored_v;
  ReadBack(rig, shape, rows, pages, &stored_k, &stored_v);
  ExpectWithin(stored_k, k, k_bound, "k");
  ExpectSame(stored_v, v, "v");
}

TEST_P(RopeAppendTest, RotatesAndStoresEveryRow) {
  Rig rig(GetParam());
  for (bool interleaved : {false, true}) {
    for (bool norm : {false, true}) {
      CheckRope(rig, {.interleaved = interleaved, .norm = norm, .rows = 0});
      CheckRope(rig, {.interleaved = interleaved, .norm = norm, .rows = 70});
      CheckRope(rig, {.interleaved = interleaved, .norm = norm, .start = 61, .rows = 5});
      for (int d : {2, 10, 16, 30, 80, 128}) {
        for (int rotary : {0, 2, d / 4 * 2, d}) {
          CheckRope(rig, {.heads = 1,
                          .group = 2,
                          .head_dim = d,
                          .rotary_dim = rotary,
                          .interleaved = interleaved,
                          .norm = norm,
                          .start = 7,
                          .rows = 3});
        }
      }
    }
  }
  CheckRope(rig, {.heads = 1, .group = 1, .head_dim = 256, .rotary_dim = 256, .rows = 2});
  CheckRope(rig, {.heads = 0, .rows = 2});
  CheckRope(rig, {.group = 0, .rows = 2});
}

INSTANTIATE_TEST_SUITE_P(Backends, RopeAppendTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
