// Speed of the attention ops over paged K/V, per instruction set: memory read at one row a sequence
// (decode) and arithmetic at many rows (prefill); what Near's statistics add, and Control.
//
//   attention_bench [threads=2] [sequences=1] [context=7904] [layers=30] [heads=3] [group=3]
//                   [dim=64] [window=256] [chunk=512] [width=32] [isa=all]
//
// Pages hold random numbers; each layer has its own, visited in turn as a model does, so that
// decode reads from memory (layers x heads x context x 4 dim bytes). One line per case: GB/s of K/V
// read once per KV head and GFLOP/s (4 dim per query and position), from the 20th percentile of
// single ops' times: a busy machine disturbs some ops, never speeds one up. With threads=1 times
// are the thread's processor time, which other processes disturb less.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"

namespace metattn {
namespace {

constexpr int kSinks = 4;

struct Settings {
  std::map<std::string, int> number = {
      {"threads", 2}, {"sequences", 1}, {"context", 7904}, {"layers", 30}, {"heads", 3},
      {"group", 3},   {"dim", 64},      {"window", 256},   {"chunk", 512}, {"width", 32}};
  std::string isa = "all";
  int operator[](const std::string& name) const { return number.at(name); }
};

Settings Parse(int argc, char** argv) {
  Settings settings;
  for (int i = 1; i < argc; ++i) {
    const std::pair<std::string, std::string> option =
        absl::StrSplit(argv[i], absl::MaxSplits('=', 1));
    if (option.first == "isa") {
      settings.isa = option.second;
      continue;
    }
    const auto found = settings.number.find(option.first);
    int value = 0;
    if (found == settings.number.end() || !absl::SimpleAtoi(option.second, &value) || value < 1) {
      std::fprintf(stderr, "what is %s? See the head of attention_bench.cc\n", argv[i]);
      std::exit(2);
    }
    found->second = value;
  }
  return settings;
}

double Now(bool processor_time) {
  timespec t{};
  clock_gettime(processor_time ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Buffers of one run. Rows [start, start + rows) of every sequence.
class World {
 public:
  World(Kernels& kernels, const Settings& s) : kernels_(kernels), s_(s) {
    stream_ = kernels.device().NewStream().value();
    blocks_per_sequence_ = (s["context"] + kBlockTokens - 1) / kBlockTokens;
    const std::int64_t blocks = std::int64_t{blocks_per_sequence_} * s["sequences"];
    const std::int64_t bytes = blocks * s["layers"] * s["heads"] * kernels.PageBytes(s["dim"]);
    std::minstd_rand random(7);
    std::vector<std::uint16_t> pages(static_cast<std::size_t>(bytes / 2));
    for (auto& value : pages) {  // bf16 of magnitude 2^-3 to 2^1, either sign
      const auto bits = static_cast<std::uint32_t>(random());
      value = static_cast<std::uint16_t>(0x3e00u + (bits & 0x1ffu) + ((bits >> 9 & 1u) << 15));
    }
    pages_ = In(pages);
  }

  template <typename T>
  View In(const std::vector<T>& values) {
    const View view = Space(values.size() * sizeof(T));
    kernels_.device().CopyIn(values.data(), view, values.size() * sizeof(T), *stream_);
    return view;
  }
  View Space(std::size_t bytes) {
    buffers_.push_back(std::make_unique<Buffer>(kernels_.device().Allocate(bytes).value()));
    return {buffers_.back().get(), 0};
  }

  AttentionRows Rows(int start, int rows, bool near) {
    std::vector<std::int32_t> position, sequence, begin, far_end, row_begin = {0}, table = {0};
    std::vector<std::int32_t> blocks;
    tokens_read_ = queries_times_tokens_ = 0;
    for (int q = 0; q < s_["sequences"]; ++q) {
      for (int i = 0; i < rows; ++i) {
        const int t = start + i;
        const int frontier = std::max(0, t - s_["window"] + 1) / kBlockTokens * kBlockTokens;
        position.push_back(t);
        sequence.push_back(q);
        begin.push_back(frontier);
        far_end.push_back(frontier);
        const int read = near ? t - frontier + 1 + kSinks : std::max(0, frontier - kSinks);
        queries_times_tokens_ += std::int64_t{read} * s_["heads"] * s_["group"];
        if (i + 1 == rows) tokens_read_ += std::int64_t{read} * s_["heads"];
      }
      row_begin.push_back(static_cast<int>(position.size()));
      for (int b = 0; b < blocks_per_sequence_; ++b) {
        blocks.push_back(q * blocks_per_sequence_ + b);
      }
      table.push_back(static_cast<int>(blocks.size()));
    }
    return {.tokens = static_cast<std::int64_t>(position.size()),
            .sequences = s_["sequences"],
            .position = In(position),
            .sequence = In(sequence),
            .row_begin = In(row_begin),
            .near_begin = In(begin),
            .far_end = In(far_end),
            .table_begin = In(table),
            .blocks = In(blocks),
            .sinks = kSinks};
  }

  // Times the ops one after the other, layer by layer, and prints a line for each; from the second
  // on with its time over the first's.
  enum class Op { kNear, kNearWithStats, kFar };
  struct Case {
    Op op;
    const char* what;
  };
  void Time(const std::vector<Case>& cases, int start, int rows) {
    const AttentionRows step = Rows(start, rows, cases[0].op != Op::kFar);
    const Activations at = MakeActivations(step.tokens);
    std::vector<std::vector<double>> times(cases.size());
    const int passes = rows > 1 ? 2 : 8;
    const int layers = rows > 1 ? std::min(6, s_["layers"]) : s_["layers"];
    for (int pass = 0; pass < passes; ++pass) {
      for (std::size_t i = 0; i < cases.size(); ++i) {
        for (int layer = 0; layer < layers; ++layer) {
          const double before = Now(s_["threads"] == 1);
          Run(cases[i].op, step, Pages(layer), at);
          const double took = Now(s_["threads"] == 1) - before;
          if (pass > 0) times[i].push_back(took);
        }
      }
    }
    for (std::size_t i = 0; i < cases.size(); ++i) {
      const double seconds = Percentile20(times[i]);
      std::printf("%-8s %-13s %6d+%-4d %9.1f us  %6.1f GB/s  %7.1f GFLOP/s  %8.3f ms all layers",
                  std::string(kernels_.isa()).c_str(), cases[i].what, start, rows, seconds * 1e6,
                  static_cast<double>(tokens_read_) * 4 * s_["dim"] / seconds / 1e9,
                  static_cast<double>(queries_times_tokens_) * 4 * s_["dim"] / seconds / 1e9,
                  seconds * 1e3 * s_["layers"]);
      if (i > 0) std::printf("  x%.3f", seconds / Percentile20(times[0]));
      std::printf("\n");
    }
    std::fflush(stdout);
  }

  // Control as a step runs it: after the layer's Near, with weights of its own per layer.
  void TimeControl(int start, int rows) {
    const AttentionRows step = Rows(start, rows, true);
    const Activations at = MakeActivations(step.tokens);
    std::vector<ControlArgs> control;
    for (int layer = 0; layer < s_["layers"]; ++layer) control.push_back(MakeControl(step, at));
    std::vector<double> near_times, control_times;
    for (int pass = 0; pass < (rows > 1 ? 2 : 8); ++pass) {
      for (int layer = 0; layer < s_["layers"]; ++layer) {
        const double before = Now(s_["threads"] == 1);
        Run(Op::kNearWithStats, step, Pages(layer), at);
        const double between = Now(s_["threads"] == 1);
        kernels_.Control(control[static_cast<std::size_t>(layer)], *stream_);
        const double after = Now(s_["threads"] == 1);
        if (pass == 0) continue;
        near_times.push_back(between - before);
        control_times.push_back(after - between);
      }
    }
    const double near = Percentile20(near_times), took = Percentile20(control_times);
    std::printf("%-8s %-13s %6d+%-4d %9.2f us  %6.3f us/row  x%.3f of near\n",
                std::string(kernels_.isa()).c_str(), "control", start, rows, took * 1e6,
                took * 1e6 / static_cast<double>(step.tokens), took / near);
    std::fflush(stdout);
  }

 private:
  struct Activations {
    View q;
    Partial partial;
    View stats;
    WorkList all;
  };

  Activations MakeActivations(std::int64_t tokens) {
    const std::int64_t queries = tokens * s_["heads"] * s_["group"];
    std::vector<std::int32_t> list;
    for (int h = 0; h < s_["heads"]; ++h) {
      for (std::int32_t t = 0; t < tokens; ++t) list.push_back(t);
    }
    const std::vector<std::int32_t> counts(s_["heads"], static_cast<int>(tokens));
    return {.q = Normals(queries * s_["dim"]),
            .partial = {Normals(queries * s_["dim"]), Normals(queries), Normals(queries)},
            .stats = Normals(queries * 2),
            .all = {In(list), In(counts), tokens}};
  }

  View Normals(std::int64_t count, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(engine_);
    return In(values);
  }

  PageTable Pages(int layer) const {
    PageTable pages = {pages_, s_["layers"] * s_["heads"], s_["heads"], s_["dim"]};
    pages.base.offset_bytes = layer * s_["heads"] * kernels_.PageBytes(s_["dim"]);
    return pages;
  }

  void Run(Op op, const AttentionRows& step, const PageTable& pages, const Activations& at) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(s_["dim"]));
    if (op == Op::kFar) {
      kernels_.FarFull({step, pages, s_["group"], scale, at.q, at.all, at.partial}, *stream_);
    } else {
      const View stats = op == Op::kNearWithStats ? at.stats : View{};
      kernels_.Near({step, pages, s_["group"], scale, at.q, at.partial, stats}, *stream_);
    }
  }

  ControlArgs MakeControl(const AttentionRows& step, const Activations& at) {
    const std::int64_t tokens = step.tokens, heads = s_["heads"], width = s_["width"];
    const std::int64_t n = 1 + 4 * s_["group"];
    return {.rows = step,
            .heads = s_["heads"],
            .group = s_["group"],
            .width = s_["width"],
            .state_tokens = 130,
            .projected = Normals(tokens * (width + 3 * heads)),
            .near = at.partial,
            .near_stats = at.stats,
            .lse_far = Normals(tokens * heads * s_["group"]),
            .scalar_mean = Normals(heads * n),
            .scalar_scale = Normals(heads * n),
            .scalars = Normals(heads * width * n, 0.3f),
            .bias = Normals(heads * width),
            .out = Normals(heads * 3 * width, 0.3f),
            .out_bias = Normals(heads * 3),
            .scalars_skip = Normals(heads * 3 * n, 0.1f),
            .offset = Normals(heads * 3),
            .route = In(std::vector<std::uint8_t>(static_cast<std::size_t>(tokens), kRouted)),
            .cost_weight = Normals(tokens),
            .eta = In(std::vector<float>(static_cast<std::size_t>(tokens), 0.95f)),
            .decisions = Space(static_cast<std::size_t>(tokens * heads)),
            .uncertainty = Space(static_cast<std::size_t>(tokens * heads) * 4),
            .margin = Space(static_cast<std::size_t>(tokens * heads) * 4),
            .weights = Space(static_cast<std::size_t>(tokens * heads) * 4 * kMechanisms)};
  }

  static double Percentile20(std::vector<double> times) {
    const auto at = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 5);
    std::nth_element(times.begin(), at, times.end());
    return *at;
  }

  Kernels& kernels_;
  const Settings& s_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  View pages_;
  std::mt19937 engine_{3};
  int blocks_per_sequence_ = 0;
  std::int64_t tokens_read_ = 0, queries_times_tokens_ = 0;
};

int Main(int argc, char** argv) {
  const Settings settings = Parse(argc, argv);
  for (std::string_view isa : cpu::AvailableIsas()) {
    if (settings.isa != "all" && settings.isa != isa) continue;
    auto kernels =
        MakeKernels({.backend = "cpu", .isa = std::string(isa), .threads = settings["threads"]});
    if (!kernels.ok()) {
      std::fprintf(stderr, "%s\n", kernels.status().ToString().c_str());
      return 1;
    }
    World world(**kernels, settings);
    const int last = settings["context"] - 1;
    const int chunk = std::min(settings["chunk"], settings["context"]);
    const int start = settings["context"] - chunk;
    using Op = World::Op;
    world.Time({{Op::kNear, "near decode"}, {Op::kNearWithStats, "  with stats"}}, last, 1);
    world.Time({{Op::kFar, "far decode"}}, last, 1);
    world.Time({{Op::kNear, "near prefill"}}, 0, chunk);
    world.Time({{Op::kNear, "near prefill"}, {Op::kNearWithStats, "  with stats"}}, start, chunk);
    world.Time({{Op::kFar, "far prefill"}}, start, chunk);
    world.TimeControl(last, 1);
    world.TimeControl(start, chunk);
  }
  return 0;
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc, argv); }
