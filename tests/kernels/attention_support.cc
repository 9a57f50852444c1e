#include "tests/kernels/attention_support.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"

namespace metattn::testing {
namespace {

constexpr int kLayers = 2;

int Frontier(const AttentionShape& shape, int position) {
  const int first = std::max(0, position - shape.window + 1);
  return shape.exact ? first : first / kBlockTokens * kBlockTokens;
}

// The mean score moves by score_error (1 + spread) with the scores, spread = sum_j p_j |score_j -
// mean|; errors of p (l_relative each, twice: of a span's terms and of its weight) move it along
// the spread, roundings of p (score - m) along m - mean; a few more when m is added and spans are
// merged.
void ExpectMean(const std::vector<double>& scores, double score_error, ExpectedPartial* expected) {
  double spread = 0, largest = 0;
  expected->mean = 0;
  for (const double s : scores) expected->mean += std::exp(s - expected->m) * s / expected->l;
  for (const double s : scores) {
    spread += std::exp(s - expected->m) / expected->l * std::abs(s - expected->mean);
    largest = std::max(largest, std::abs(s));
  }
  const double merges = static_cast<double>(scores.size()) / kSpanTokens + 4;
  expected->mean_bound = score_error * (1 + spread) +
                         2 * expected->l_relative * (spread + expected->m - expected->mean) +
                         merges * 4 * kF32 * largest;
}

}  // namespace

std::string AttentionShape::Name() const {
  std::string name = absl::StrCat("H ", heads, " g ", group, " d ", head_dim, " sinks ", sinks,
                                  " window ", window, exact ? " exact" : "", " rows");
  for (const SequenceRows& s : sequences) absl::StrAppend(&name, " ", s.start, "+", s.rows);
  return name;
}

AttentionWorld::AttentionWorld(Rig& rig, const AttentionShape& shape, std::uint64_t seed)
    : rig_(rig),
      shape_(shape),
      seed_(seed),
      scale_(1.0f / std::sqrt(static_cast<float>(shape.head_dim))) {
  table_begin_.push_back(0);
  for (std::size_t s = 0; s < shape.sequences.size(); ++s) {
    const int length = shape.sequences[s].start + shape.sequences[s].rows;
    const auto values = static_cast<std::size_t>(length) * shape.heads * shape.head_dim;
    k_.push_back(Randoms(values, seed + 10 * s + 1));
    v_.push_back(Randoms(values, seed + 10 * s + 2));
    table_begin_.push_back(table_begin_.back() + (length + kBlockTokens - 1) / kBlockTokens);
  }
  blocks_.resize(static_cast<std::size_t>(table_begin_.back()));
  std::iota(blocks_.begin(), blocks_.end(), 1);  // block 0 belongs to nobody
  std::shuffle(blocks_.begin(), blocks_.end(), std::mt19937_64(seed));
  const std::int64_t page = rig.kernels().PageBytes(shape.head_dim);
  const auto count = static_cast<std::int64_t>(blocks_.size() + 1) * kLayers * shape.heads;
  pages_ = {.base = rig.Space(static_cast<std::size_t>(page * count)),
            .block_stride = kLayers * shape.heads,
            .heads = shape.heads,
            .head_dim = shape.head_dim};
  pages_.base.offset_bytes = static_cast<std::size_t>(page * shape.heads);
}

const float* AttentionWorld::KeyIn(int sequence, int position) const {
  return k_[sequence].data() +
         static_cast<std::ptrdiff_t>(position) * shape_.heads * shape_.head_dim;
}

const float* AttentionWorld::ValueIn(int sequence, int position) const {
  return v_[sequence].data() +
         static_cast<std::ptrdiff_t>(position) * shape_.heads * shape_.head_dim;
}

StepRows AttentionWorld::Rows(const std::vector<SequenceRows>& sequences) {
  StepRows rows;
  std::vector<std::int32_t> row_begin = {0};
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    for (int i = 0; i < sequences[s].rows; ++i) {
      const int position = sequences[s].start + i;
      rows.position.push_back(position);
      rows.sequence.push_back(static_cast<std::int32_t>(s));
      rows.near_begin.push_back(Frontier(shape_, position));
      rows.far_end.push_back(Frontier(shape_, position));
    }
    row_begin.push_back(static_cast<std::int32_t>(rows.position.size()));
  }
  rows.views = {.tokens = static_cast<std::int64_t>(rows.position.size()),
                .sequences = static_cast<int>(sequences.size()),
                .position = rig_.In(rows.position),
                .sequence = rig_.In(rows.sequence),
                .row_begin = rig_.In(row_begin),
                .near_begin = rig_.In(rows.near_begin),
                .far_end = rig_.In(rows.far_end),
                .table_begin = rig_.In(table_begin_),
                .blocks = rig_.In(blocks_),
                .sinks = shape_.sinks};
  return rows;
}

void AttentionWorld::AppendAll() {
  std::vector<SequenceRows> step;
  for (std::size_t s = 0; s < shape_.sequences.size(); ++s) step.push_back({0, 0});
  for (int size = 1;; size = size % 131 + 37) {
    int appended = 0;
    for (std::size_t s = 0; s < step.size(); ++s) {
      const int length = shape_.sequences[s].start + shape_.sequences[s].rows;
      step[s].start += step[s].rows;
      step[s].rows = std::min(size, length - step[s].start);
      appended += step[s].rows;
    }
    if (appended == 0) return;
    const StepRows rows = Rows(step);
    std::vector<float> qkv;
    for (std::int64_t t = 0; t < rows.views.tokens; ++t) {
      const int width = shape_.heads * shape_.head_dim;
      qkv.insert(qkv.end(), static_cast<std::size_t>(width) * shape_.group, 0.5f);
      const float* k = KeyIn(rows.sequence[t], rows.position[t]);
      const float* v = ValueIn(rows.sequence[t], rows.position[t]);
      qkv.insert(qkv.end(), k, k + width);
      qkv.insert(qkv.end(), v, v + width);
    }
    const std::int64_t q = rows.views.tokens * shape_.heads * shape_.group * shape_.head_dim;
    rig_.kernels().RopeAppend({.rows = rows.views,
                               .pages = pages_,
                               .group = shape_.group,
                               .qkv = rig_.In(qkv),
                               .cos_sin = rig_.In(std::vector<float>(2)),
                               .rotary_dim = 0,
                               .q = rig_.Floats(q)},
                              rig_.stream());
  }
}

std::vector<float> AttentionWorld::Queries(const StepRows& rows) const {
  std::vector<float> q;
  const auto width = static_cast<std::size_t>(shape_.heads) * shape_.group * shape_.head_dim;
  for (std::size_t t = 0; t < rows.position.size(); ++t) {
    const auto row = Randoms(width, seed_ + 1000003u * rows.position[t] + rows.sequence[t], 1.5f);
    q.insert(q.end(), row.begin(), row.end());
  }
  return q;
}

std::vector<int> AttentionWorld::NearPositions(const StepRows& rows, int row) const {
  std::vector<int> positions;
  for (int p = 0; p <= rows.position[row]; ++p) {
    if (p < shape_.sinks || p >= rows.near_begin[row]) positions.push_back(p);
  }
  return positions;
}

std::vector<int> AttentionWorld::FarPositions(const StepRows& rows, int row) const {
  std::vector<int> positions;
  for (int p = shape_.sinks; p < rows.far_end[row]; ++p) positions.push_back(p);
  return positions;
}

ExpectedPartial AttentionWorld::Expect(const float* q, int sequence, int head,
                                       const std::vector<int>& positions) const {
  const int d = shape_.head_dim;
  const bool rounds = rig_.rounds_queries(d);
  ExpectedPartial expected;
  expected.o.assign(static_cast<std::size_t>(d), 0.0);
  expected.o_bound = expected.o;
  expected.m = -std::numeric_limits<double>::infinity();
  std::vector<double> scores;
  double score_error = 0, largest = 0;
  for (int p : positions) {
    double sum = 0, magnitude = 0, rounding = 0;
    for (int i = 0; i < d; ++i) {
      const double k = Bf16ToF32(F32ToBf16(KeyIn(sequence, p)[head * d + i])) * scale_;
      const double product = double{q[i]} * k;
      sum += product;
      if (rounds) rounding += std::abs((double{Bf16ToF32(F32ToBf16(q[i]))} - q[i]) * k);
      magnitude += std::abs(product);
    }
    scores.push_back(sum);
    expected.m = std::max(expected.m, sum);
    score_error = std::max(score_error, magnitude * (d + 3) * kF32 + rounding);
    largest = std::max(largest, std::abs(sum));
  }
  // exp(score - m): both scores off (with bf16 by what rounding q to bf16 moves them, its unit
  // times |scale q k| at most), the difference rounded (with bf16 also two constants and a
  // product), exp itself; then a sum of n terms and, per page and span, one rescaling by another
  // exp.
  const auto n = static_cast<double>(positions.size());
  const double rescalings = 2 * (n / kBlockTokens + n / kSpanTokens + 4);
  expected.l_relative = std::expm1(2 * score_error + (rounds ? 8 : 3) * largest * kF32) + kExp +
                        (n + 2) * kF32 + rescalings * (kExp + 2 * kF32);
  expected.m_bound = score_error + largest * kF32;
  // With bf16 the weights of V, not those of l, are rounded to bf16.
  const double weight_error =
      expected.l_relative + (rounds ? kBf16 * (1 + expected.l_relative) : 0);
  for (std::size_t i = 0; i < positions.size(); ++i) {
    const double p = std::exp(scores[i] - expected.m);
    expected.l += p;
    for (int j = 0; j < d; ++j) {
      const double v = Bf16ToF32(F32ToBf16(ValueIn(sequence, positions[i])[head * d + j]));
      expected.o[j] += p * v;
      expected.o_bound[j] += p * std::abs(v) * weight_error;
    }
  }
  ExpectMean(scores, score_error, &expected);
  return expected;
}

Partial NewPartial(Rig& rig, std::int64_t tokens, int q_heads, int head_dim) {
  return {.o = rig.Floats(tokens * q_heads * head_dim),
          .m = rig.Floats(tokens * q_heads),
          .l = rig.Floats(tokens * q_heads)};
}

WorkList EveryRow(Rig& rig, std::int64_t tokens, int heads) {
  std::vector<std::int32_t> rows;
  for (int h = 0; h < heads; ++h) {
    for (std::int32_t t = 0; t < tokens; ++t) rows.push_back(t);
    rows.push_back(-1);  // capacity is larger than the count
  }
  return {.rows = rig.In(rows),
          .counts = rig.In(std::vector<std::int32_t>(static_cast<std::size_t>(heads),
                                                     static_cast<std::int32_t>(tokens))),
          .capacity = tokens + 1};
}

HostPartial ReadPartial(Rig& rig, const Partial& partial, std::int64_t tokens, int q_heads,
                        int head_dim) {
  return {rig.Out<float>(partial.o, tokens * q_heads * head_dim),
          rig.Out<float>(partial.m, tokens * q_heads), rig.Out<float>(partial.l, tokens * q_heads)};
}

void PartialExpectation::Add(const ExpectedPartial& expected) {
  o.insert(o.end(), expected.o.begin(), expected.o.end());
  o_bound.insert(o_bound.end(), expected.o_bound.begin(), expected.o_bound.end());
  m.push_back(expected.m);
  m_bound.push_back(expected.m_bound);
  l.push_back(expected.l);
  l_bound.push_back(expected.l * expected.l_relative);
}

void PartialExpectation::Check(const HostPartial& actual, const std::string& what) const {
  ExpectWithin(actual.m, m, m_bound, what + ": m");
  ExpectWithin(actual.l, l, l_bound, what + ": l");
  ExpectWithin(actual.o, o, o_bound, what + ": o");
}

void ExpectSamePartial(const HostPartial& actual, const HostPartial& expected,
                       const std::string& what) {
  ExpectSame(actual.m, expected.m, what + ": m");
  ExpectSame(actual.l, expected.l, what + ": l");
  ExpectSame(actual.o, expected.o, what + ": o");
}

}  // namespace metattn::testing
