// Dispatch: rows that leave a work list for a bucket, in order and no more than it holds; what
// carries them there and back moves bits; and attention is the same whoever reads the far pages.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "absl/strings/str_cat.h"
#include "tests/kernels/attention_support.h"

namespace metattn::testing {
namespace {

class DispatchTest : public ::testing::TestWithParam<BackendParam> {};

struct DispatchCase {
  int tokens, heads, head;
  BucketShape bucket;
  int listed, helped;  // percent
  int queries() const { return tokens * heads * bucket.group; }
  std::string Name() const {
    return absl::StrCat("T ", tokens, " head ", head, " of ", heads, " g ", bucket.group, " d ",
                        bucket.head_dim, " C ", bucket.capacity, " listed ", listed, "% helped ",
                        helped, "%");
  }
};

std::vector<DispatchCase> DispatchCases() {
  return {
      {5, 1, 0, {3, 1, 64}, 100, 100},   {6, 3, 1, {8, 3, 64}, 70, 70},
      {70, 2, 1, {64, 3, 32}, 100, 100}, {70, 2, 0, {33, 7, 80}, 100, 60},
      {200, 3, 2, {40, 2, 34}, 80, 50},  {33, 1, 0, {33, 1, 256}, 100, 100},
      {9, 2, 0, {4, 2, 128}, 100, 0},    {9, 2, 1, {4, 2, 2}, 0, 100},
      {9, 2, 1, {0, 2, 64}, 100, 100},   {130, 1, 0, {64, 3, 64}, 60, 90},
  };
}

// The home's side of a case, and which of its rows must leave.
struct Home {
  Home(Rig& rig, const DispatchCase& c) : c(c), capacity(c.tokens + 3) {
    std::mt19937 engine(17);
    const auto chance = [&](int percent) { return static_cast<int>(engine() % 100) < percent; };
    for (int t = 0; t < c.tokens; ++t) helped.push_back(chance(c.helped) ? 1 + engine() % 255 : 0);
    for (int h = 0; h < c.heads; ++h) {
      rows.resize(static_cast<std::size_t>(h * capacity));
      for (int t = 0; t < c.tokens; ++t) {
        if (chance(c.listed)) rows.push_back(t);
      }
      counts.push_back(static_cast<int>(rows.size()) - h * capacity);
    }
    rows.resize(static_cast<std::size_t>(c.heads * capacity), -1);
    for (int i = 0; i < counts[c.head]; ++i) {
      const std::int32_t row = rows[c.head * capacity + i];
      const bool leaves = helped[row] != 0 && std::ssize(sent) < c.bucket.capacity;
      (leaves ? sent : kept).push_back(row);
    }
    q = Randoms(static_cast<std::size_t>(c.queries()) * c.bucket.head_dim, 18);
    args = {.step = DispatchStep::kSend,
            .bucket = c.bucket,
            .tokens = c.tokens,
            .heads = c.heads,
            .head = c.head,
            .helped = rig.In(helped),
            .list = {rig.In(rows), rig.In(counts), capacity},
            .q = rig.In(q),
            .request = rig.Space(static_cast<std::size_t>(c.bucket.request_bytes()))};
    rig.kernels().Dispatch(args, rig.stream());
  }

  // Of query head g of the i-th row that left, in arrays [T, H*g].
  std::int64_t Index(std::size_t i, int g) const {
    return (std::int64_t{sent[i]} * c.heads + c.head) * c.bucket.group + g;
  }

  DispatchCase c;
  std::int64_t capacity;
  std::vector<std::uint8_t> helped;
  std::vector<std::int32_t> rows, counts, sent, kept;
  std::vector<float> q;
  DispatchArgs args;
};

TEST_P(DispatchTest, HelpedRowsLeaveTheListInOrderAsFarAsTheyFit) {
  Rig rig(GetParam());
  for (const DispatchCase& c : DispatchCases()) {
    SCOPED_TRACE(c.Name());
    const Home home(rig, c);
    const BucketViews bucket(home.args);
    const auto count = rig.Out<std::int32_t>(bucket.count, 1)[0];
    ASSERT_EQ(count, std::ssize(home.sent));
    EXPECT_EQ(rig.Out<std::int32_t>(bucket.rows, count), home.sent);

    const auto counts = rig.Out<std::int32_t>(home.args.list.counts, c.heads);
    auto rows = rig.Out<std::int32_t>(home.args.list.rows, c.heads * home.capacity);
    for (int h = 0; h < c.heads; ++h) {
      const std::int32_t* list = rows.data() + h * home.capacity;
      if (h == c.head) {
        EXPECT_EQ(std::vector(list, list + counts[h]), home.kept);
      } else {
        const std::int32_t* before = home.rows.data() + h * home.capacity;
        EXPECT_EQ(counts[h], home.counts[h]);
        EXPECT_EQ(std::vector(list, list + home.capacity),
                  std::vector(before, before + home.capacity));
      }
    }
    const int g = c.bucket.group, d = c.bucket.head_dim;
    const auto q = rig.Out<float>(bucket.q, std::int64_t{count} * g * d);
    for (std::size_t i = 0; i < home.sent.size(); ++i) {
      const std::int64_t from = home.Index(i, 0) * d;
      const auto width = static_cast<std::size_t>(g * d);
      ExpectSame(std::span(q).subspan(i * width, width),
                 std::span(home.q).subspan(static_cast<std::size_t>(from), width), "q");
    }
  }
}

TEST_P(DispatchTest, TheHelperGetsQueriesAndEmptyPartialsAndReturnsWhatItMadeOfThem) {
  Rig rig(GetParam());
  for (const DispatchCase& c : DispatchCases()) {
    SCOPED_TRACE(c.Name());
    const Home home(rig, c);
    const int g = c.bucket.group, d = c.bucket.head_dim;
    DispatchArgs args = {.step = DispatchStep::kServe,
                         .bucket = c.bucket,
                         .tokens = c.tokens,
                         .q = rig.Floats(std::int64_t{c.tokens} * g * d),
                         .partial = NewPartial(rig, c.tokens, g, d),
                         .request = home.args.request,
                         .answer = rig.Space(static_cast<std::size_t>(c.bucket.answer_bytes()))};
    rig.kernels().Dispatch(args, rig.stream());
    const auto q = rig.Out<float>(args.q, std::int64_t{c.tokens} * g * d);
    HostPartial partial = ReadPartial(rig, args.partial, c.tokens, g, d);
    std::size_t next = 0;
    for (int t = 0; t < c.tokens; ++t) {
      const bool sent = next < home.sent.size() && home.sent[next] == t;
      for (int i = t * g; i < (t + 1) * g; ++i) {
        EXPECT_EQ(std::isnan(partial.l[i]), !sent) << "row " << t;  // others are left alone
        if (!sent) continue;
        EXPECT_EQ(partial.l[i], 0);
        EXPECT_EQ(partial.m[i], -std::numeric_limits<float>::infinity());
        for (int j = 0; j < d; ++j) {
          EXPECT_EQ(partial.o[i * d + j], 0);
          EXPECT_EQ(q[i * d + j], home.q[home.Index(next, i - t * g) * d + j]);
        }
      }
      next += sent ? 1 : 0;
    }

    partial = {Randoms(partial.o.size(), 19), Randoms(partial.m.size(), 20),
               Randoms(partial.l.size(), 21)};
    args.partial = {rig.In(partial.o), rig.In(partial.m), rig.In(partial.l)};
    args.step = DispatchStep::kReturn;
    rig.kernels().Dispatch(args, rig.stream());
    const BucketViews bucket(args);
    const std::int64_t queries = std::ssize(home.sent) * g;
    const auto o = rig.Out<float>(bucket.o, queries * d), m = rig.Out<float>(bucket.m, queries),
               l = rig.Out<float>(bucket.l, queries);
    for (std::int64_t i = 0; i < queries; ++i) {
      const std::int64_t index = std::int64_t{home.sent[i / g]} * g + i % g;
      EXPECT_EQ(m[i], partial.m[index]);
      EXPECT_EQ(l[i], partial.l[index]);
      for (int j = 0; j < d; ++j) EXPECT_EQ(o[i * d + j], partial.o[index * d + j]);
    }
  }
}

// The helper's side of a bucket; the home's pages stand for its copies.
void Serve(Rig& rig, DispatchArgs args, const StepRows& rows, const AttentionWorld& world) {
  const auto [capacity, g, d] = args.bucket;
  PageTable copies = world.pages();
  copies.base.offset_bytes += static_cast<std::size_t>(args.head * rig.kernels().PageBytes(d));
  copies.heads = 1;
  args.heads = 1, args.head = 0;
  args.q = rig.Floats(args.tokens * g * d);
  args.partial = NewPartial(rig, args.tokens, g, d);
  args.step = DispatchStep::kServe;
  rig.kernels().Dispatch(args, rig.stream());
  const WorkList list = RequestList(args.bucket, args.request);
  rig.kernels().FarFull({rows.views, copies, g, world.scale(), args.q, list, args.partial},
                        rig.stream());
  args.step = DispatchStep::kReturn;
  rig.kernels().Dispatch(args, rig.stream());
}

// Rows of several lengths whose far pages are read at home, elsewhere as far as there is room, or
// nowhere.
TEST_P(DispatchTest, AttentionIsTheSameWhoeverReads) {
  Rig rig(GetParam());
  for (const AttentionShape& shape : ForThisRun<AttentionShape>(
           {{.heads = 2, .group = 3, .window = 64, .sequences = {{300, 1}, {40, 1}, {700, 1}}},
            {.heads = 1, .group = 2, .head_dim = 80, .window = 64, .sequences = {{380, 9}, {0, 2}}},
            {.heads = 3,
            .group = 1,
            .head_dim = 34,
            .window = 40,
            .sequences = {{500, 1}, {620, 1}, {130, 1}, {90, 1}}}})) {
    AttentionWorld world(rig, shape, 22);
    world.AppendAll();
    const StepRows rows = world.Rows();
    const int heads = shape.heads, g = shape.group, d = shape.head_dim, head = heads - 1;
    const std::int64_t tokens = rows.views.tokens;
    const auto queries = world.Queries(rows);
    const View q = rig.In(queries);
    const Partial partial = NewPartial(rig, tokens, heads * g, d);
    const NearArgs near = {rows.views, world.pages(), g, world.scale(), q, partial, {}};
    rig.kernels().Near(near, rig.stream());
    const WorkList list = EveryRow(rig, tokens, heads);
    const BucketShape bucket = {2, g, d};
    DispatchArgs args = {.bucket = bucket,
                         .tokens = tokens,
                         .heads = heads,
                         .head = head,
                         .helped = rig.In(std::vector<std::uint8_t>(tokens, 1)),
                         .list = list,
                         .q = q,
                         .partial = partial,
                         .request = rig.Space(static_cast<std::size_t>(bucket.request_bytes())),
                         .answer = rig.Space(static_cast<std::size_t>(bucket.answer_bytes()))};
    rig.kernels().Dispatch(args, rig.stream());

    Serve(rig, args, rows, world);
    rig.kernels().FarFull({rows.views, world.pages(), g, world.scale(), q, list, partial},
                          rig.stream());
    args.step = DispatchStep::kMerge;
    rig.kernels().Dispatch(args, rig.stream());
    PartialExpectation expectation;
    for (int t = 0; t < tokens; ++t) {
      std::vector<int> all(static_cast<std::size_t>(rows.position[t]) + 1);
      std::iota(all.begin(), all.end(), 0);
      for (int hq = 0; hq < heads * g; ++hq) {
        const float* query = queries.data() + (t * heads * g + hq) * d;
        expectation.Add(world.Expect(query, rows.sequence[t], hq / g, all));
      }
    }
    expectation.Check(ReadPartial(rig, partial, tokens, heads * g, d), shape.Name());
    EXPECT_EQ(rig.Out<std::int32_t>(list.counts, heads)[head], tokens - 2);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DispatchTest, ::testing::ValuesIn(Backends()),
                         [](const auto& info) { return info.param.Name(); });

}  // namespace
}  // namespace metattn::testing
