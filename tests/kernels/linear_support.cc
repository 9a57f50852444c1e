#include "tests/kernels/linear_support.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "absl/strings/str_cat.h"

namespace metattn::testing {
namespace {

constexpr int kStateLayers = 2;
constexpr double kUnderflow = 1e-37;  // what underflow may take

double Stored(float value) { return Bf16ToF32(F32ToBf16(value)); }

std::vector<std::uint16_t> Narrow(std::vector<float>* values) {
  std::vector<std::uint16_t> narrow;
  for (float& value : *values) {
    narrow.push_back(F32ToBf16(value));
    value = Bf16ToF32(narrow.back());
  }
  return narrow;
}

}  // namespace

std::vector<std::uint16_t> ArrangedMaps(const Kernels& kernels, std::vector<std::uint16_t> maps,
                                        int d) {
  const auto size = static_cast<std::size_t>(d) * d;
  for (std::size_t at = 0; at < maps.size(); at += size) {
    kernels.ArrangeQueryMap(std::span(maps).subspan(at, size), d);
  }
  return maps;
}

std::string LinearCase::Name() const {
  return absl::StrCat(attention.Name(), map == FeatureMap::kHedgehog ? " hedgehog" : " elu1",
                      all ? " all" : "");
}

LinearWorld::LinearWorld(Rig& rig, const LinearCase& shape, std::uint64_t seed)
    : rig_(rig),
      shape_(shape),
      seed_(seed),
      features_(Features(shape.map, shape.attention.head_dim)),
      attention_(rig, shape.attention, seed) {
  attention_.AppendAll();
  const int heads = shape.attention.heads, q_heads = heads * shape.attention.group;
  const int d = shape.attention.head_dim;
  const float scale = shape.weights / std::sqrt(static_cast<float>(d));
  if (shape.map == FeatureMap::kHedgehog) {
    w_q_ = Randoms(static_cast<std::size_t>(q_heads) * d * d, seed + 101, scale);
    w_k_ = Randoms(static_cast<std::size_t>(heads) * d * d, seed + 102, scale);
    w_q_view_ = rig.In(ArrangedMaps(rig.kernels(), Narrow(&w_q_), d));
    w_k_view_ = rig.In(Narrow(&w_k_));
  }
  log_gain_ = Randoms(static_cast<std::size_t>(q_heads), seed + 103);
  kappa_ = Randoms(static_cast<std::size_t>(q_heads), seed + 104);
  const auto slots = static_cast<std::int64_t>(shape.attention.sequences.size()) + 2;
  const std::int64_t bytes = StateBytes(features_, d);
  table_floats_ = slots * kStateLayers * heads * (bytes / 4);
  states_ = {.base = rig.Space(static_cast<std::size_t>(table_floats_) * 4),
             .slot_stride = kStateLayers * heads};
  states_.base.offset_bytes = static_cast<std::size_t>(heads * bytes);
}

int LinearWorld::LinearEnd(int position) const {
  if (shape_.all) return position + 1;
  const int first = std::max(0, position - shape_.attention.window + 1);
  return shape_.attention.exact ? first : first / kBlockTokens * kBlockTokens;
}

StepRows LinearWorld::Rows(const std::vector<SequenceRows>& sequences,
                           const std::vector<std::int32_t>& state_end) {
  StepRows rows = attention_.Rows(sequences);
  std::vector<std::int32_t> linear_end, slots;
  for (int position : rows.position) linear_end.push_back(LinearEnd(position));
  for (std::size_t s = 0; s < sequences.size(); ++s) slots.push_back(Slot(static_cast<int>(s)));
  rows.views.linear_end = rig_.In(linear_end);
  rows.views.linear_begin = shape_.all ? 0 : shape_.attention.sinks;
  rows.views.linear_all = shape_.all;
  rows.views.state_slot = rig_.In(slots);
  rows.views.state_end = rig_.In(state_end);
  return rows;
}

std::vector<std::int32_t> LinearWorld::StateEnds(const std::vector<SequenceRows>& sequences,
                                                 std::vector<std::int32_t> before) const {
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    if (sequences[s].rows == 0) continue;
    const int end = LinearEnd(sequences[s].start + sequences[s].rows - 1);
    before[s] = end / kBlockTokens * kBlockTokens;
  }
  return before;
}

bool LinearWorld::Eligible(const StepRows& rows, int row) const {
  return shape_.all || rows.far_end[row] > shape_.attention.sinks;
}

bool LinearWorld::Listed(const StepRows& rows, int row, int head) const {
  return Eligible(rows, row) && (rows.position[row] + head) % 4 != 1;
}

HostPartial LinearWorld::Near(const StepRows& rows) const {
  const auto q_heads = static_cast<std::size_t>(shape_.attention.heads) * shape_.attention.group;
  HostPartial near;
  for (std::size_t t = 0; t < rows.position.size(); ++t) {
    const std::uint64_t seed = seed_ + 1000003u * rows.position[t] + rows.sequence[t];
    const auto o = Randoms(q_heads * shape_.attention.head_dim, seed, 30.0f);
    const auto m = Randoms(q_heads, seed + 1, 4.0f);
    const auto l = Randoms(q_heads, seed + 2, 50.0f);
    near.o.insert(near.o.end(), o.begin(), o.end());
    near.m.insert(near.m.end(), m.begin(), m.end());
    for (float value : l) near.l.push_back(std::abs(value) + 1.0f);
  }
  return near;
}

LinearShape LinearWorld::Shape(const StepRows& rows) const {
  return {.rows = rows.views,
          .pages = attention_.pages(),
          .states = states_,
          .group = shape_.attention.group,
          .map = shape_.map,
          .w_k = w_k_view_};
}

std::vector<float> LinearWorld::Follow(const StepRows& rows) {
  const std::int64_t tokens = rows.views.tokens,
                     q_heads = shape_.attention.heads * shape_.attention.group;
  const std::vector<std::int32_t> counts(static_cast<std::size_t>(shape_.attention.heads));
  rig_.kernels().LinearAbsorb({Shape(rows)}, rig_.stream());
  rig_.kernels().FarLinear(
      {.shape = Shape(rows),
       .phi_q = rig_.Floats(tokens * q_heads * features_),
       .lse_far = rig_.Floats(tokens * q_heads),
       .list = {rig_.Space(static_cast<std::size_t>(shape_.attention.heads * tokens) * 4),
                rig_.In(counts), tokens},
       .partial = NewPartial(rig_, tokens, static_cast<int>(q_heads), shape_.attention.head_dim)},
      rig_.stream());
  return rig_.Out<float>({states_.base.buffer, 0}, table_floats_);
}

WorkList LinearWorld::List(const StepRows& rows, bool listed) {
  const std::int64_t capacity = rows.views.tokens + 1;
  const int heads = shape_.attention.heads;
  std::vector<std::int32_t> list(static_cast<std::size_t>(heads * capacity), -1);
  std::vector<std::int32_t> counts(static_cast<std::size_t>(heads));
  for (int h = 0; h < heads; ++h) {
    for (std::int32_t t = 0; t < rows.views.tokens; ++t) {
      if (!Eligible(rows, t) || Listed(rows, t, h) != listed) continue;
      list[static_cast<std::size_t>(h * capacity + counts[static_cast<std::size_t>(h)]++)] = t;
    }
  }
  return {rig_.In(list), rig_.In(counts), capacity};
}

LinearResult LinearWorld::Step(const StepRows& rows, bool pairs) {
  const AttentionShape& shape = shape_.attention;
  const std::int64_t tokens = rows.views.tokens;
  const int q_heads = shape.heads * shape.group, d = shape.head_dim;
  Kernels& kernels = rig_.kernels();
  const View q = rig_.In(attention_.Queries(rows)), stats = rig_.Floats(tokens * q_heads * 2);
  const Partial partial = NewPartial(rig_, tokens, q_heads, d);
  const LinearShape linear = Shape(rows);
  const LinearOddsArgs odds = {.shape = linear,
                               .w_q = w_q_view_,
                               .log_gain = rig_.In(log_gain_),
                               .kappa = rig_.In(kappa_),
                               .q = q,
                               .near = partial,
                               .phi_q = rig_.Floats(tokens * q_heads * features_),
                               .lse_far = rig_.Floats(tokens * q_heads)};
  const NearArgs near = {
      rows.views, attention_.pages(), shape.group, attention_.scale(), q, partial, stats};
  const FarFullArgs full = {rows.views, attention_.pages(), shape.group, attention_.scale(),
                            q,          List(rows, false),  partial};
  const FarLinearArgs far = {linear,           odds.phi_q, odds.lse_far,
                             List(rows, true), partial,    shape_.all};
  kernels.LinearAbsorb({linear}, rig_.stream());
  if (pairs) {
    kernels.NearAndOdds(near, odds, rig_.stream());
    kernels.Far(full, far, rig_.stream());
  } else {
    kernels.Near(near, rig_.stream());
    kernels.LinearOdds(odds, rig_.stream());
    kernels.FarFull(full, rig_.stream());
    kernels.FarLinear(far, rig_.stream());
  }
  LinearResult result;
  result.states = rig_.Out<float>({states_.base.buffer, 0}, table_floats_);
  result.phi_q = rig_.Out<float>(odds.phi_q, tokens * q_heads * features_);
  result.lse_far = rig_.Out<float>(odds.lse_far, tokens * q_heads);
  result.near_stats = rig_.Out<float>(stats, tokens * q_heads * 2);
  result.partial = ReadPartial(rig_, partial, tokens, q_heads, d);
  return result;
}

LinearResult LinearWorld::Run(const StepRows& rows) {
  const AttentionShape& shape = shape_.attention;
  const std::int64_t tokens = rows.views.tokens;
  const int heads = shape.heads, q_heads = heads * shape.group, d = shape.head_dim;
  const LinearShape linear = Shape(rows);
  const HostPartial near = Near(rows);
  const Partial partial = {rig_.In(near.o), rig_.In(near.m), rig_.In(near.l)};
  const View phi_q = rig_.Floats(tokens * q_heads * features_);
  const View lse_far = rig_.Floats(tokens * q_heads);
  LinearResult result;
  const View table = {states_.base.buffer, 0};
  rig_.kernels().LinearAbsorb({linear}, rig_.stream());
  result.absorbed = rig_.Out<float>(table, table_floats_);
  rig_.kernels().LinearOdds({.shape = linear,
                             .w_q = w_q_view_,
                             .log_gain = rig_.In(log_gain_),
                             .kappa = rig_.In(kappa_),
                             .q = rig_.In(attention_.Queries(rows)),
                             .near = partial,
                             .phi_q = phi_q,
                             .lse_far = lse_far},
                            rig_.stream());
  result.after_odds = rig_.Out<float>(table, table_floats_);
  rig_.kernels().FarLinear({.shape = linear,
                            .phi_q = phi_q,
                            .lse_far = lse_far,
                            .list = List(rows, true),
                            .partial = partial,
                            .alone = shape_.all},
                           rig_.stream());
  result.states = rig_.Out<float>(table, table_floats_);
  result.phi_q = rig_.Out<float>(phi_q, tokens * q_heads * features_);
  result.lse_far = rig_.Out<float>(lse_far, tokens * q_heads);
  result.partial = ReadPartial(rig_, partial, tokens, q_heads, d);
  return result;
}

const float* LinearWorld::StateIn(const std::vector<float>& table, int sequence, int head) const {
  const int place = (Slot(sequence) * kStateLayers + 1) * shape_.attention.heads + head;
  return table.data() + static_cast<std::ptrdiff_t>(place) * state_floats();
}

ExpectedFeatures LinearWorld::Phi(const std::vector<float>& weights, int head,
                                  const std::vector<double>& x,
                                  const std::vector<double>& rounding) const {
  const std::size_t d = x.size();
  ExpectedFeatures features;
  if (shape_.map == FeatureMap::kEluPlusOne) {
    for (double value : x) features.phi.push_back(value > 0 ? value + 1 : std::exp(value));
    features.relative = kExp + 2 * kF32;
    return features;
  }
  std::vector<double> y(d);
  double y_error = 0;
  for (std::size_t r = 0; r < d; ++r) {
    double magnitude = 0, moved = 0;
    for (std::size_t i = 0; i < d; ++i) {
      const double w = weights[(head * d + r) * d + i];
      y[r] += w * x[i];
      magnitude += std::abs(w * x[i]);
      moved += std::abs(w) * rounding[i];
    }
    y_error = std::max(y_error, magnitude * static_cast<double>(d + 1) * kF32 + moved);
  }
  // exp(y - max): both off, their difference rounded (with base 2 a constant and a product too),
  // exp; divided by a sum of d of them.
  const auto [low, high] = std::minmax_element(y.begin(), y.end());
  const double range = *high - *low;
  const double exponential = std::expm1(2 * y_error + 4 * range * kF32) + kExp + 4 * kF32;
  features.relative = 2 * exponential + (static_cast<double>(d) + 4) * kF32;
  for (double sign : {1.0, -1.0}) {
    const double largest = sign > 0 ? *high : -*low;
    double sum = 0;
    std::vector<double> exponentials;
    for (double value : y) exponentials.push_back(std::exp(sign * value - largest));
    for (double e : exponentials) sum += e;
    for (double e : exponentials) features.phi.push_back(e / sum);
  }
  return features;
}

void LinearWorld::Extend(int sequence, int head, int end, ExpectedState* state) const {
  const int d = shape_.attention.head_dim;
  state->s.resize(static_cast<std::size_t>(features_) * d);
  state->s_magnitude.resize(state->s.size());
  state->z.resize(static_cast<std::size_t>(features_));
  const int begin = std::max(state->end, shape_.all ? 0 : shape_.attention.sinks);
  for (int p = begin; p < end; ++p) {
    std::vector<double> k, v;
    for (int i = 0; i < d; ++i) {
      k.push_back(Stored(attention_.KeyIn(sequence, p)[head * d + i]));
      v.push_back(Stored(attention_.ValueIn(sequence, p)[head * d + i]));
    }
    const ExpectedFeatures features = Phi(w_k_, head, k, std::vector<double>(k.size()));
    state->relative = std::max(state->relative, features.relative);
    for (int f = 0; f < features_; ++f) {
      const double phi = features.phi[f];
      double* s = state->s.data() + f * d;
      double* magnitude = state->s_magnitude.data() + f * d;
      state->z[f] += phi;
      for (int i = 0; i < d; ++i) {
        s[i] += phi * v[i];
        magnitude[i] += phi * std::abs(v[i]);
      }
    }
    ++state->keys;
  }
  state->end = end;
}

ExpectedRow LinearWorld::Expect(int q_head, const float* q, float m, float l,
                                const ExpectedState& state) const {
  const int d = shape_.attention.head_dim;
  std::vector<double> x, rounding;
  for (int i = 0; i < d; ++i) {
    x.push_back(q[i]);
    rounding.push_back(rig_.QueryRounding(q[i]));
  }
  ExpectedRow expected;
  expected.features = Phi(w_q_, q_head, x, rounding);
  expected.value.resize(static_cast<std::size_t>(d));
  expected.value_bound = expected.value;
  double weight = 0;
  for (int f = 0; f < features_; ++f) weight += expected.features.phi[f] * state.z[f];
  // Sums of positive terms: over features, over keys (a block's apart).
  const double sums = (2.0 * features_ + state.keys + 12) * kF32;
  const double relative = expected.features.relative + state.relative + sums;
  const double near_m = m, near_log_l = std::log(double{l});
  expected.lse = std::log(weight) + log_gain_[q_head] + kappa_[q_head] * (near_m + near_log_l);
  expected.lse_bound =
      relative + 5e-7 * (std::abs(std::log(weight)) + std::abs(double{log_gain_[q_head]}) +
                         std::abs(kappa_[q_head]) * (std::abs(near_m) + near_log_l));
  const double products = relative + (rig_.rounds_features() ? 3.1 * kBf16 : 0.0);
  for (int i = 0; i < d; ++i) {
    double magnitude = 0;
    for (int f = 0; f < features_; ++f) {
      expected.value[i] += expected.features.phi[f] * state.s[f * d + i] / weight;
      magnitude += expected.features.phi[f] * state.s_magnitude[f * d + i] / weight;
    }
    expected.value_bound[i] =
        magnitude * products + std::abs(expected.value[i]) * (relative + 4 * kF32) + kUnderflow;
  }
  return expected;
}

}  // namespace metattn::testing
