// Speed of the attention ops over paged K/V, per instruction set: memory read at one row a sequence
// (decode) and arithmetic at many rows (prefill).
//
//   attention_bench [threads=2] [sequences=1] [context=7904] [layers=30] [heads=3] [group=3]
//                   [dim=64] [window=256] [chunk=512] [isa=all]
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
  std::map<std::string, int> number = {{"threads", 2}, {"sequences", 1}, {"context", 7904},
                                       {"layers", 30}, {"heads", 3},     {"group", 3},
                                       {"dim", 64},    {"window", 256},  {"chunk", 512}};
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

  void Time(const char* what, int start, int rows, bool near) {
    const AttentionRows step = Rows(start, rows, near);
    const std::int64_t tokens = step.tokens, queries = tokens * s_["heads"] * s_["group"];
    std::mt19937 engine(3);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<float> q(static_cast<std::size_t>(queries * s_["dim"]));
    for (float& value : q) value = normal(engine);
    const View q_view = In(q);
    const Partial partial = {Space(q.size() * 4), Space(queries * 4), Space(queries * 4)};
    std::vector<std::int32_t> list;
    for (int h = 0; h < s_["heads"]; ++h) {
      for (std::int32_t t = 0; t < tokens; ++t) list.push_back(t);
    }
    const WorkList all = {
        In(list), In(std::vector<std::int32_t>(s_["heads"], static_cast<int>(tokens))), tokens};
    std::vector<double> times;
    const int passes = rows > 1 ? 1 : 8;
    const int layers = rows > 1 ? std::min(6, s_["layers"]) : s_["layers"];
    for (int pass = 0; pass < passes; ++pass) {
      for (int layer = 0; layer < layers; ++layer) {
        PageTable pages = {pages_, s_["layers"] * s_["heads"], s_["heads"], s_["dim"]};
        pages.base.offset_bytes = layer * s_["heads"] * kernels_.PageBytes(s_["dim"]);
        const float scale = 1.0f / std::sqrt(static_cast<float>(s_["dim"]));
        const double before = Now(s_["threads"] == 1);
        if (near) {
          kernels_.Near({step, pages, s_["group"], scale, q_view, partial}, *stream_);
        } else {
          kernels_.FarFull({step, pages, s_["group"], scale, q_view, all, partial}, *stream_);
        }
        const double took = Now(s_["threads"] == 1) - before;
        if (pass > 0 || rows > 1) times.push_back(took);
      }
    }
    const auto at = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 5);
    std::nth_element(times.begin(), at, times.end());
    std::printf("%-8s %-13s %6d+%-4d %9.1f us  %6.1f GB/s  %7.1f GFLOP/s  %8.3f ms all layers\n",
                std::string(kernels_.isa()).c_str(), what, start, rows, *at * 1e6,
                static_cast<double>(tokens_read_) * 4 * s_["dim"] / *at / 1e9,
                static_cast<double>(queries_times_tokens_) * 4 * s_["dim"] / *at / 1e9,
                *at * 1e3 * s_["layers"]);
    std::fflush(stdout);
  }

 private:
  Kernels& kernels_;
  const Settings& s_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  View pages_;
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
    world.Time("near decode", last, 1, true);
    world.Time("far decode", last, 1, false);
    world.Time("near prefill", 0, chunk, true);
    world.Time("far prefill", settings["context"] - chunk, chunk, false);
  }
  return 0;
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc, argv); }
