// Speed of the ops of linear attention beside Near over the same rows, per instruction set.
//
//   linear_attention_bench [threads=2] [sequences=1] [context=2048] [layers=30] [heads=3] [group=3]
//                          [dim=64] [chunk=512] [isa=all] [elu=0]
//
// Decode: one row of each sequence at the end of its context. Prefill: the last `chunk` rows of one
// sequence. All rows are listed. Each layer has its own pages, weights and states, visited in turn
// as a model does. One line per case: microseconds of each op (20th percentile: a busy machine
// disturbs some ops, never speeds one up) and their ratio to Near; "absorb" is the op as decode
// meets it when a block is complete, once in 64 tokens. With threads=1 times are processor time.
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
constexpr int kWindow = 256;

struct Settings {
  std::map<std::string, int> number = {{"threads", 2}, {"sequences", 1}, {"context", 2048},
                                       {"layers", 30}, {"heads", 3},     {"group", 3},
                                       {"dim", 64},    {"chunk", 512},   {"elu", 0}};
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
    if (found == settings.number.end() || !absl::SimpleAtoi(option.second, &value) || value < 0) {
      std::fprintf(stderr, "what is %s? See the head of linear_attention_bench.cc\n", argv[i]);
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

class World {
 public:
  World(Kernels& kernels, const Settings& s)
      : kernels_(kernels),
        s_(s),
        map_(s["elu"] != 0 ? FeatureMap::kEluPlusOne : FeatureMap::kHedgehog),
        features_(Features(map_, s["dim"])) {
    stream_ = kernels.device().NewStream().value();
    blocks_per_sequence_ = (s["context"] + kBlockTokens - 1) / kBlockTokens;
    const std::int64_t blocks = std::int64_t{blocks_per_sequence_} * s["sequences"];
    const std::int64_t shards = std::int64_t{s["layers"]} * s["heads"];
    const std::int64_t dd = std::int64_t{s["dim"]} * s["dim"];
    pages_ = Bf16(blocks * shards * kernels.PageBytes(s["dim"]) / 2, 0x3e00);
    w_k_ = Bf16(shards * dd, 0x3d00);
    w_q_ = Bf16(shards * s["group"] * dd, 0x3d00);
    const std::vector<float> states(
        static_cast<std::size_t>(s["sequences"] * shards * StateBytes(features_, s["dim"]) / 4),
        1.0f);
    states_ = In(states);
    const std::vector<float> gains(static_cast<std::size_t>(s["heads"] * s["group"]), 0.5f);
    gains_ = In(gains);
  }

  // Rows [start, start + rows) of `sequences` sequences.
  void Time(const char* what, int sequences, int start, int rows) {
    shape_.rows = Rows(sequences, start, rows);
    const std::int64_t tokens = shape_.rows.tokens, heads = s_["heads"];
    const std::int64_t queries = tokens * heads * s_["group"];
    std::mt19937 engine(3);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> q(static_cast<std::size_t>(queries * s_["dim"]));
    for (float& value : q) value = normal(engine);
    const View q_view = In(q);
    const Partial partial = {Space(q.size() * 4), Space(queries * 4), Space(queries * 4)};
    const View phi_q = Space(queries * features_ * 4), lse_far = Space(queries * 4);
    std::vector<std::int32_t> list;
    for (int h = 0; h < heads; ++h) {
      for (std::int32_t t = 0; t < tokens; ++t) list.push_back(t);
    }
    const WorkList all = {In(list), In(std::vector<std::int32_t>(heads, static_cast<int>(tokens))),
                          tokens};
    std::vector<double> times[4];
    Measure({q_view, partial, phi_q, lse_far, all}, rows > 1 ? 2 : 12, times);
    const double near = Percentile(times[0]), absorb = Percentile(times[1]);
    const double odds = Percentile(times[2]), far = Percentile(times[3]);
    std::printf(
        "%-7s %-8s %2d x %d+%-4d near %8.1f us  odds %8.1f (%.2f)  far linear %8.1f (%.2f)"
        "  absorb of a block %8.1f (%.2f)\n",
        std::string(kernels_.isa()).c_str(), what, sequences, start, rows, near * 1e6, odds * 1e6,
        odds / near, far * 1e6, far / near, absorb * 1e6, absorb / near);
    std::fflush(stdout);
  }

 private:
  struct Buffers {
    View q;
    Partial partial;
    View phi_q, lse_far;
    WorkList list;
  };

  void Measure(const Buffers& b, int passes, std::vector<double> (&times)[4]) {
    for (int pass = 0; pass < passes; ++pass) {
      for (int layer = 0; layer < s_["layers"]; ++layer) {
        Layer(layer);
        double took[4];
        Clock(took[0], [&] {
          kernels_.Near({.rows = shape_.rows,
                         .pages = shape_.pages,
                         .group = s_["group"],
                         .scale = 1.0f / std::sqrt(static_cast<float>(s_["dim"])),
                         .q = b.q,
                         .out = b.partial},
                        *stream_);
        });
        // Absorb alternates: nothing to do, as in most steps, or one block of every sequence.
        shape_.rows.state_end = pass % 2 == 0 ? state_behind_ : state_end_;
        Clock(took[1], [&] { kernels_.LinearAbsorb({shape_}, *stream_); });
        Clock(took[2], [&] {
          kernels_.LinearOdds({.shape = shape_,
                               .w_q = At(w_q_, layer * s_["heads"] * s_["group"] * WeightBytes()),
                               .log_gain = gains_,
                               .kappa = gains_,
                               .q = b.q,
                               .near = b.partial,
                               .phi_q = b.phi_q,
                               .lse_far = b.lse_far},
                              *stream_);
        });
        Clock(took[3], [&] {
          kernels_.FarLinear({.shape = shape_,
                              .phi_q = b.phi_q,
                              .lse_far = b.lse_far,
                              .list = b.list,
                              .partial = b.partial},
                             *stream_);
        });
        for (int i = 0; i < 4; ++i) {
          if (i != 1 || pass % 2 == 0) times[i].push_back(took[i]);
        }
      }
    }
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
  // Random bf16 around the exponent of `bits`, either sign.
  View Bf16(std::int64_t count, std::uint32_t bits) {
    std::minstd_rand random(7);
    std::vector<std::uint16_t> values(static_cast<std::size_t>(count));
    for (auto& value : values) {
      const auto r = static_cast<std::uint32_t>(random());
      value = static_cast<std::uint16_t>(bits + (r & 0xffu) + ((r >> 9 & 1u) << 15));
    }
    return In(values);
  }
  static View At(View view, std::int64_t bytes) {
    view.offset_bytes += static_cast<std::size_t>(bytes);
    return view;
  }
  std::int64_t WeightBytes() const { return std::int64_t{2} * s_["dim"] * s_["dim"]; }

  AttentionRows Rows(int sequences, int start, int rows) {
    std::vector<std::int32_t> position, sequence, frontier, row_begin = {0}, table = {0}, blocks;
    std::vector<std::int32_t> slot, held, behind;
    for (int q = 0; q < sequences; ++q) {
      for (int t = start; t < start + rows; ++t) {
        position.push_back(t);
        sequence.push_back(q);
        frontier.push_back(std::max(0, t - kWindow + 1) / kBlockTokens * kBlockTokens);
      }
      row_begin.push_back(static_cast<int>(position.size()));
      for (int b = 0; b < blocks_per_sequence_; ++b) {
        blocks.push_back(q * blocks_per_sequence_ + b);
      }
      table.push_back(static_cast<int>(blocks.size()));
      slot.push_back(q);
      held.push_back(std::max(0, start - kWindow + 1) / kBlockTokens * kBlockTokens);
      behind.push_back(std::max(kBlockTokens, held.back() - kBlockTokens));
    }
    state_end_ = In(held);
    state_behind_ = In(behind);
    return {.tokens = static_cast<std::int64_t>(position.size()),
            .sequences = sequences,
            .position = In(position),
            .sequence = In(sequence),
            .row_begin = In(row_begin),
            .near_begin = In(frontier),
            .far_end = In(frontier),
            .table_begin = In(table),
            .blocks = In(blocks),
            .sinks = kSinks,
            .linear_end = In(frontier),
            .linear_begin = kSinks,
            .state_slot = In(slot),
            .state_end = state_end_};
  }

  void Layer(int layer) {
    const int heads = s_["heads"], d = s_["dim"];
    shape_.pages = {At(pages_, layer * heads * kernels_.PageBytes(d)), s_["layers"] * heads, heads,
                    d};
    shape_.states = {At(states_, layer * heads * StateBytes(features_, d)), s_["layers"] * heads};
    shape_.group = s_["group"];
    shape_.map = map_;
    shape_.w_k = At(w_k_, layer * heads * WeightBytes());
  }

  template <typename Op>
  void Clock(double& took, Op op) {
    const double before = Now(s_["threads"] == 1);
    op();
    took = Now(s_["threads"] == 1) - before;
  }

  static double Percentile(std::vector<double>& times) {
    const auto at = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 5);
    std::nth_element(times.begin(), at, times.end());
    return *at;
  }

  Kernels& kernels_;
  const Settings& s_;
  const FeatureMap map_;
  const int features_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  View pages_, w_q_, w_k_, states_, gains_, state_end_, state_behind_;
  LinearShape shape_;
  int blocks_per_sequence_ = 0;
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
    world.Time("decode", settings["sequences"], settings["context"] - 1, 1);
    const int chunk = std::min(settings["chunk"], settings["context"]);
    world.Time("prefill", 1, settings["context"] - chunk, chunk);
  }
  return 0;
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc, argv); }
