#include "tests/gpu/bench_cases.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/check.h"
#include "tests/kernels/attention_support.h"
#include "tests/kernels/linear_support.h"

namespace metattn::gpu_bench {
namespace {

using testing::ArrangedMaps;
using testing::AttentionShape;
using testing::AttentionWorld;
using testing::NewPartial;
using testing::Randoms;
using testing::Rig;
using testing::SequenceRows;
using testing::StepRows;

constexpr int kSinks = 4, kWindow = 256;

std::size_t Size(std::int64_t count) { return static_cast<std::size_t>(count); }

std::function<std::vector<float>()> Reader(Rig& rig, View out, std::int64_t count) {
  return [&rig, out, count] { return rig.Out<float>(out, count); };
}

std::function<std::vector<float>()> ActivationReader(Rig& rig, View out, std::int64_t count) {
  return [&rig, out, count] { return rig.OutActivations(out, count); };
}

// One matrix, several numbers of rows of x.
std::vector<Case> LinearCases(Rig& rig, const Shape& shape, DType dtype,
                              const std::vector<int>& counts) {
  const std::int64_t rows = shape.rows, cols = shape.hidden;
  const std::vector<std::byte> data = testing::RandomRows(dtype, rows, cols, 1);
  const MatrixPart part = {dtype, data.data(), rows, BytesFor(dtype, cols)};
  auto packed = rig.kernels().Pack({&part, 1}, cols);
  METATTN_CHECK(packed.ok(), packed.status().ToString());
  const std::shared_ptr<Matrix> matrix = *std::move(packed);
  std::vector<Case> cases;
  for (const int tokens : counts) {
    const LinearArgs args = {.weight = matrix.get(),
                             .x = rig.InActivations(Randoms(Size(tokens * cols), 2)),
                             .out = rig.Floats(tokens * rows),
                             .tokens = tokens};
    cases.push_back({absl::StrCat("linear ", std::string(Info(dtype).name), ", ", tokens, " rows"),
                     static_cast<double>(matrix->bytes() + tokens * (4 * rows + 2 * cols)),
                     2.0 * tokens * static_cast<double>(rows * cols),
                     [&rig, matrix, args] { rig.kernels().Linear(args, rig.stream()); },
                     Reader(rig, args.out, tokens * rows)});
  }
  return cases;
}

std::vector<Case> NormCase(Rig& rig, const Shape& shape) {
  const std::int64_t values = shape.chunk * shape.hidden;
  const NormArgs args = {.residual = rig.In(Randoms(Size(values), 3)),
                         .delta = rig.In(Randoms(Size(values), 4)),
                         .weight = rig.In(Randoms(Size(shape.hidden), 5)),
                         .out = rig.Activations(values),
                         .tokens = shape.chunk,
                         .dim = shape.hidden};
  return {{absl::StrCat("norm, ", shape.chunk, " rows"), 14.0 * static_cast<double>(values),
           5.0 * static_cast<double>(values),
           [&rig, args] { rig.kernels().Norm(args, rig.stream()); },
           ActivationReader(rig, args.out, values)}};
}

std::vector<Case> SwiGluCase(Rig& rig, const Shape& shape) {
  const std::int64_t values = shape.chunk * shape.hidden;
  const SwiGluArgs args = {.gate_up = rig.InActivations(Randoms(Size(2 * values), 6)),
                           .out = rig.Activations(values),
                           .tokens = shape.chunk,
                           .dim = shape.hidden};
  return {{absl::StrCat("swiglu, ", shape.chunk, " rows"), 6.0 * static_cast<double>(values),
           5.0 * static_cast<double>(values),
           [&rig, args] { rig.kernels().SwiGlu(args, rig.stream()); },
           ActivationReader(rig, args.out, values)}};
}

// Of the logits of a greedy step.
std::vector<Case> ArgMaxCase(Rig& rig, const Shape& shape) {
  const std::int64_t count = shape.sequences, dim = shape.rows;
  const ArgMaxArgs args = {.x = rig.In(Randoms(Size(count * dim), 11)),
                           .out = rig.Space(Size(count) * sizeof(Largest)),
                           .rows = count,
                           .dim = dim};
  const auto result = [&rig, args, count] {
    std::vector<float> values;
    for (const Largest& best : rig.Out<Largest>(args.out, count)) {
      values.push_back(best.value);
      values.push_back(static_cast<float>(best.index));
    }
    return values;
  };
  return {{absl::StrCat("argmax, ", count, " rows of ", dim),
           4.0 * static_cast<double>(count * dim), static_cast<double>(count * dim),
           [&rig, args] { rig.kernels().ArgMax(args, rig.stream()); }, result}};
}

// A helper's side of a decode step: every row of one KV head out of a request, and back.
std::vector<Case> DispatchCase(Rig& rig, const Shape& shape) {
  const std::int64_t rows = shape.sequences;
  const BucketShape bucket = {rows, shape.group, shape.head_dim};
  std::vector<std::byte> request(Size(bucket.request_bytes()));
  const auto count = static_cast<std::int32_t>(rows);
  const std::vector<float> q = Randoms(Size(bucket.values()), 12);
  std::vector<std::int32_t> numbers(Size(rows));
  std::iota(numbers.begin(), numbers.end(), 0);
  std::memcpy(request.data(), &count, sizeof count);
  std::memcpy(request.data() + bucket.rows_at(), numbers.data(), numbers.size() * 4);
  std::memcpy(request.data() + bucket.q_at(), q.data(), q.size() * 4);
  const int group = shape.group, d = shape.head_dim;
  DispatchArgs args = {.bucket = bucket,
                       .tokens = rows,
                       .q = rig.Floats(bucket.values()),
                       .partial = NewPartial(rig, rows, group, d),
                       .request = rig.In(request),
                       .answer = rig.Space(Size(bucket.answer_bytes()))};
  const auto run = [&rig, args]() mutable {
    for (const DispatchStep step : {DispatchStep::kServe, DispatchStep::kReturn}) {
      args.step = step;
      rig.kernels().Dispatch(args, rig.stream());
    }
  };
  return {{absl::StrCat("dispatch, ", rows, " rows"), 20.0 * static_cast<double>(q.size()), 0, run,
           Reader(rig, args.q, bucket.values())}};
}

// A world of K/V, rows of a step over it and their queries. Near partials start empty.
struct Attention {
  std::shared_ptr<AttentionWorld> world;
  StepRows rows;
  View q;
  Partial partial;
  int q_heads = 0, head_dim = 0;
  std::int64_t tokens() const { return rows.views.tokens; }
};

Attention MakeAttention(Rig& rig, const Shape& s, const std::vector<SequenceRows>& sequences) {
  const AttentionShape shape = {.heads = s.heads,
                                .group = s.group,
                                .head_dim = s.head_dim,
                                .sinks = kSinks,
                                .window = kWindow,
                                .sequences = sequences};
  Attention a = {.world = std::make_shared<AttentionWorld>(rig, shape, 7),
                 .q_heads = s.heads * s.group,
                 .head_dim = s.head_dim};
  a.world->AppendAll();
  a.rows = a.world->Rows();
  a.q = rig.In(a.world->Queries(a.rows));
  const auto count = Size(a.tokens() * a.q_heads);
  a.partial = {rig.In(std::vector<float>(count * Size(a.head_dim))),
               rig.In(std::vector<float>(count, -INFINITY)), rig.In(std::vector<float>(count))};
  return a;
}

// o / l: comparable between backends whatever m they took.
std::function<std::vector<float>()> Normalized(Rig& rig, const Attention& a) {
  const std::int64_t values = a.tokens() * a.q_heads * a.head_dim;
  return [&rig, a, values] {
    const View out = rig.Activations(values);
    rig.kernels().Normalize({a.partial, a.tokens(), a.q_heads, a.head_dim, out}, rig.stream());
    return rig.OutActivations(out, values);
  };
}

// Bytes and operations of an attention op whose row t reads [begin(t), end(t)): K and V of what any
// row of a sequence reads once per KV head, q and the partial.
template <typename Listed, typename Begin, typename End>
void Count(const Attention& a, int group, const Listed& listed, const Begin& begin, const End& end,
           Case* c) {
  std::vector<std::pair<std::int64_t, std::int64_t>> read;
  const double d = a.head_dim, q_heads = a.q_heads;
  for (std::size_t t = 0; t < a.rows.position.size(); ++t) {
    if (!listed(t)) continue;
    const auto s = Size(a.rows.sequence[t]);
    if (read.size() <= s) read.resize(s + 1, {0, 0});
    auto& [first, last] = read[s];
    first = last == 0 ? begin(t) : std::min<std::int64_t>(first, begin(t));
    last = std::max<std::int64_t>(last, end(t));
    c->flops += 4 * d * q_heads * static_cast<double>(end(t) - begin(t));
    c->bytes += 4 * q_heads * (3 * d + 4);  // q, o in and out, m and l in and out
  }
  for (const auto& [first, last] : read) {
    c->bytes += 4 * d * (q_heads / group) * static_cast<double>(last - first);
  }
}

Case NearCase(Rig& rig, const Attention& a, int group, const std::string& name) {
  const float scale = a.world->scale();
  const NearArgs args = {a.rows.views, a.world->pages(), group, scale, a.q, a.partial, View{}};
  Case c = {.name = name,
            .run = [&rig, a, args] { rig.kernels().Near(args, rig.stream()); },
            .result = Normalized(rig, a)};
  // The sinks add a few positions to the window.
  Count(
      a, group, [](std::size_t) { return true; },
      [&](std::size_t t) { return std::max(0, a.rows.near_begin[t] - kSinks); },
      [&](std::size_t t) { return a.rows.position[t] + 1; }, &c);
  return c;
}

// Every `every`-th row is listed, of all KV heads.
Case FarCase(Rig& rig, const Attention& a, int group, int every) {
  std::vector<std::int32_t> listed;
  for (std::int32_t t = 0; t < a.tokens(); t += every) listed.push_back(t);
  const int heads = a.q_heads / group;
  std::vector<std::int32_t> rows(Size(heads * a.tokens()));
  for (int h = 0; h < heads; ++h) {
    std::copy(listed.begin(), listed.end(), rows.begin() + h * a.tokens());
  }
  const auto count = static_cast<std::int32_t>(listed.size());
  const WorkList list = {rig.In(rows), rig.In(std::vector<std::int32_t>(Size(heads), count)),
                         a.tokens()};
  const FarFullArgs args = {a.rows.views, a.world->pages(), group, a.world->scale(), a.q,
                            list,         a.partial};
  Case c = {.name = absl::StrCat("far, ", count, " of ", a.tokens(), " rows"),
            .run = [&rig, a, args] { rig.kernels().FarFull(args, rig.stream()); },
            .result = Normalized(rig, a)};
  Count(
      a, group, [every](std::size_t t) { return t % Size(every) == 0; },
      [](std::size_t) { return kSinks; },
      [&](std::size_t t) { return std::max(kSinks, a.rows.far_end[t]); }, &c);
  return c;
}

// Near first: it fills the partials that Far then merges into.
std::vector<Case> DecodeCases(Rig& rig, const Shape& s) {
  const std::vector<SequenceRows> sequences(Size(s.sequences), {s.context - 1, 1});
  const Attention a = MakeAttention(rig, s, sequences);
  const std::string name = absl::StrCat("near, ", s.sequences, " sequences");
  return {NearCase(rig, a, s.group, name), FarCase(rig, a, s.group, 1),
          FarCase(rig, a, s.group, 4)};
}

std::vector<Case> PrefillCases(Rig& rig, const Shape& s) {
  const Attention a = MakeAttention(rig, s, {{s.context - s.chunk, s.chunk}});
  const std::string name = absl::StrCat("near, chunk of ", s.chunk);
  return {NearCase(rig, a, s.group, name), FarCase(rig, a, s.group, 1),
          FarCase(rig, a, s.group, 4)};
}

// States that are up to date, learned features: the read of one state per row and KV head.
std::vector<Case> FarLinearCase(Rig& rig, const Shape& s) {
  const std::vector<SequenceRows> sequences(Size(s.sequences), {s.context - 1, 1});
  Attention a = MakeAttention(rig, s, sequences);
  const int features = Features(FeatureMap::kHedgehog, s.head_dim);
  const std::int64_t state = StateBytes(features, s.head_dim) / 4;
  std::vector<std::int32_t> slots(Size(s.sequences)), rows;
  for (int i = 0; i < s.sequences; ++i) slots[Size(i)] = i;
  for (int h = 0; h < s.heads; ++h) rows.insert(rows.end(), slots.begin(), slots.end());
  std::vector<float> positive = Randoms(Size(s.sequences * s.heads * state), 8);
  std::vector<float> phi = Randoms(Size(a.tokens() * a.q_heads * features), 9);
  for (auto* values : {&positive, &phi}) {
    for (float& value : *values) value = std::abs(value) + 0.01f;
  }
  AttentionRows& views = a.rows.views;  // one row a sequence: row i reads the state in slot i
  views.linear_end = views.state_end = views.far_end;
  views.linear_begin = kSinks;
  views.state_slot = rig.In(slots);
  const View w = rig.Space(Size(s.heads * s.head_dim * s.head_dim) * 2);  // no key needs it
  const FarLinearArgs args = {
      .shape =
          {views, a.world->pages(), {rig.In(positive), s.heads}, s.group, FeatureMap::kHedgehog, w},
      .phi_q = rig.In(phi),
      .lse_far = rig.In(Randoms(Size(a.tokens() * a.q_heads), 10)),
      .list = {rig.In(rows), rig.In(std::vector<std::int32_t>(Size(s.heads), s.sequences)),
               a.tokens()},
      .partial = a.partial};
  const double reads = static_cast<double>(a.tokens() * a.q_heads);
  return {{absl::StrCat("far linear, ", s.sequences, " sequences"),
           4 * (reads / s.group * static_cast<double>(state) + reads * (features + 2 * s.head_dim)),
           2 * reads * static_cast<double>(state),
           [&rig, a, args] { rig.kernels().FarLinear(args, rig.stream()); }, Normalized(rig, a)}};
}

// Linear attention with learned features over fresh states: what a step of these rows runs.
struct LinearStep {
  Attention a;
  LinearShape shape;
  LinearOddsArgs odds;
  FarLinearArgs far;
  std::int64_t state = 0, listed = 0;  // floats of a state, rows that have far keys
};

std::shared_ptr<LinearStep> MakeLinearStep(Rig& rig, const Shape& s,
                                           const std::vector<SequenceRows>& sequences) {
  const auto step = std::make_shared<LinearStep>(LinearStep{MakeAttention(rig, s, sequences)});
  Attention& a = step->a;
  const auto d = Size(s.head_dim), tokens = Size(a.tokens()), q_heads = Size(a.q_heads);
  const int features = Features(FeatureMap::kHedgehog, s.head_dim);
  step->state = StateBytes(features, s.head_dim) / 4;
  std::vector<std::int32_t> slots(sequences.size()), rows;
  std::iota(slots.begin(), slots.end(), 0);
  for (std::int32_t t = 0; t < a.tokens(); ++t) {
    if (a.rows.far_end[Size(t)] > kSinks) rows.push_back(t);
  }
  const auto listed = static_cast<std::int32_t>(rows.size());
  step->listed = listed;
  std::vector<std::int32_t> lists(Size(s.heads) * tokens);
  for (int h = 0; h < s.heads; ++h) {
    std::copy(rows.begin(), rows.end(), lists.begin() + h * a.tokens());
  }
  AttentionRows& views = a.rows.views;
  views.linear_end = views.far_end;
  views.linear_begin = kSinks;
  views.state_slot = rig.In(slots);
  views.state_end = rig.In(std::vector<std::int32_t>(sequences.size()));
  const auto weights = [&](std::size_t heads, std::uint64_t seed) {
    std::vector<std::uint16_t> narrow;
    for (float w : Randoms(heads * d * d, seed, 1 / std::sqrt(static_cast<float>(d)))) {
      narrow.push_back(F32ToBf16(w));
    }
    return narrow;
  };
  const auto states = Size(step->state * s.heads) * sequences.size();
  step->shape = {views,   a.world->pages(),      {rig.Space(states * 4), s.heads},
                 s.group, FeatureMap::kHedgehog, rig.In(weights(Size(s.heads), 11))};
  // P0 of one value in every dimension, so that what linear attention adds to it shows.
  const Partial near = {rig.In(std::vector<float>(tokens * q_heads * d, 1.0f)),
                        rig.In(std::vector<float>(tokens * q_heads)),
                        rig.In(std::vector<float>(tokens * q_heads, 1.0f))};
  a.partial = near;
  step->odds = {.shape = step->shape,
                .w_q = rig.In(ArrangedMaps(rig.kernels(), weights(q_heads, 12), s.head_dim)),
                .log_gain = rig.In(std::vector<float>(q_heads)),
                .kappa = rig.In(std::vector<float>(q_heads)),
                .q = a.q,
                .near = near,
                .phi_q = rig.Floats(a.tokens() * a.q_heads * features),
                .lse_far = rig.Floats(a.tokens() * a.q_heads)};
  step->far = {
      .shape = step->shape,
      .phi_q = step->odds.phi_q,
      .lse_far = step->odds.lse_far,
      .list = {rig.In(lists), rig.In(std::vector<std::int32_t>(Size(s.heads), listed)), a.tokens()},
      .partial = near};
  return step;
}

// States rebuilt from the pages, as after preemption.
std::vector<Case> AbsorbCase(Rig& rig, const Shape& s) {
  const auto step =
      MakeLinearStep(rig, s, std::vector<SequenceRows>(Size(s.sequences), {s.context - 1, 1}));
  const std::int64_t d = s.head_dim, states = std::int64_t{s.sequences} * s.heads;
  const std::int64_t keys = states * (s.context - kWindow);
  return {{absl::StrCat("linear absorb, ", s.sequences, " of ", s.context, " tokens"),
           4.0 * static_cast<double>(keys * d + states * step->state),
           static_cast<double>(keys * (2 * d * d + 2 * step->state)),
           [&rig, step] { rig.kernels().LinearAbsorb({step->shape}, rig.stream()); },
           Reader(rig, step->shape.states.base, states * step->state)}};
}

// A prompt's first rows: states of its own keys, weights and merge of all rows past the window.
std::vector<Case> LinearPrefillCase(Rig& rig, const Shape& s) {
  const int rows = std::max(4 * s.chunk, 2 * kWindow);
  const auto step = MakeLinearStep(rig, s, {{0, rows}});
  const std::int64_t d = s.head_dim, f = 2 * d, queries = step->listed * step->a.q_heads;
  const std::int64_t keys = std::int64_t{s.heads} * (rows - kWindow);
  const std::int64_t weights = d * d * (s.heads + step->a.q_heads);
  return {{absl::StrCat("linear prefill, ", rows, " rows"),
           static_cast<double>(4 * keys * d + 2 * weights + 4 * queries * (3 * d + 2 * f + 4) +
                               16 * keys / kBlockTokens * step->state),
           static_cast<double>(keys * (2 * d * d + 2 * step->state) + queries * 4 * f * d),
           [&rig, step] {
             rig.kernels().LinearOdds(step->odds, rig.stream());
             rig.kernels().FarLinear(step->far, rig.stream());
           },
           Normalized(rig, step->a)}};
}

}  // namespace

std::vector<Maker> Makers() {
  const auto linear = [](DType dtype, std::vector<int> counts) {
    return [dtype, counts](Rig& rig, const Shape& shape) {
      std::vector<int> tokens = counts;
      if (dtype == DType::kBF16) tokens.push_back(shape.chunk);
      return LinearCases(rig, shape, dtype, tokens);
    };
  };
  return {linear(DType::kBF16, {1, 16}),
          linear(DType::kQ8_0, {1, 16}),
          linear(DType::kQ4_0, {1, 16}),
          NormCase,
          SwiGluCase,
          ArgMaxCase,
          DispatchCase,
          DecodeCases,
          PrefillCases,
          FarLinearCase,
          AbsorbCase,
          LinearPrefillCase};
}

}  // namespace metattn::gpu_bench
