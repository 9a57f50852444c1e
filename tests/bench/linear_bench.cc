// Speed of Linear per weight dtype and instruction set: memory read at one row (a decode step) and
// arithmetic at many rows (prefill). Weights are random and larger than the caches (or what --mib
// says), split into matrices of one shape, visited in turn as the layers of a model are.
//
//   linear_bench [threads=2] [tokens=1,512] [shape=576x1536] [mib=96] [isa=all] [dtype=all]
//
// One line per case: GB/s of weights and GFLOP/s from the 20th percentile of the single ops' times
// (a busy machine disturbs some ops, never speeds one up), five passes after one to warm up.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

struct Settings {
  int threads = 2;
  std::vector<int> tokens = {1, 512};
  std::int64_t cols = 576, rows = 1536;
  std::int64_t mib = 96;
  std::string isa = "all", dtype = "all";
};

[[noreturn]] void Usage(const std::string& what) {
  std::fprintf(stderr,
               "%s\nusage: linear_bench [threads=2] [tokens=1,512] [shape=COLSxROWS] [mib=96] "
               "[isa=NAME] [dtype=NAME]\n",
               what.c_str());
  std::exit(2);
}

int Number(const std::string& text) {
  int value = 0;
  if (!absl::SimpleAtoi(text, &value) || value < 1) Usage("not a positive number: " + text);
  return value;
}

Settings Parse(int argc, char** argv) {
  Settings s;
  for (int i = 1; i < argc; ++i) {
    const std::pair<std::string, std::string> option =
        absl::StrSplit(argv[i], absl::MaxSplits('=', 1));
    const auto& [name, value] = option;
    if (name == "threads") {
      s.threads = Number(value);
    } else if (name == "tokens") {
      s.tokens.clear();
      for (const std::string& t : std::vector<std::string>(absl::StrSplit(value, ','))) {
        s.tokens.push_back(Number(t));
      }
    } else if (name == "shape") {
      const std::pair<std::string, std::string> shape =
          absl::StrSplit(value, absl::MaxSplits('x', 1));
      s.cols = Number(shape.first);
      s.rows = Number(shape.second);
    } else if (name == "mib") {
      s.mib = Number(value);
    } else if (name == "isa") {
      s.isa = value;
    } else if (name == "dtype") {
      s.dtype = value;
    } else {
      Usage("unknown setting: " + std::string(argv[i]));
    }
  }
  return s;
}

// Random bits with every 16- or 32-bit float in them small and finite.
std::vector<std::byte> RandomWeights(DType dtype, std::int64_t rows, std::int64_t cols) {
  std::minstd_rand random(7);
  std::vector<std::byte> data(static_cast<std::size_t>(BytesFor(dtype, cols) * rows));
  for (std::byte& b : data) b = static_cast<std::byte>(random() >> 8);
  const DTypeInfo info = Info(dtype);
  const auto put16 = [&](std::size_t at, std::uint16_t v) { std::memcpy(&data[at], &v, 2); };
  for (std::size_t at = 0; at < data.size(); at += static_cast<std::size_t>(info.block_bytes)) {
    if (dtype == DType::kF32) {
      const float v = static_cast<float>(random() % 1000) * 1e-4f;
      std::memcpy(&data[at], &v, 4);
    } else if (dtype == DType::kBF16) {
      put16(at, F32ToBf16(static_cast<float>(random() % 1000) * 1e-4f));
    } else {
      put16(at, static_cast<std::uint16_t>(0x2000 | random() % 1024));
      if (dtype == DType::kQ4_1)
        put16(at + 2, static_cast<std::uint16_t>(0xa000 | random() % 1024));
    }
  }
  return data;
}

View Whole(const Buffer& buffer) { return {&buffer, 0}; }

struct Case {
  Kernels& kernels;
  const Settings& settings;
  DType dtype;
  int tokens;
};

double SecondsPerOp(const Case& c, const std::vector<std::unique_ptr<Matrix>>& weights) {
  Kernels& k = c.kernels;
  const Settings& s = c.settings;
  auto stream = k.device().NewStream().value();
  const Buffer x = k.device().Allocate(c.tokens * s.cols * sizeof(float)).value();
  const Buffer out = k.device().Allocate(c.tokens * s.rows * sizeof(float)).value();
  const std::vector<float> ones(static_cast<std::size_t>(c.tokens * s.cols), 0.5f);
  k.device().CopyIn(ones.data(), Whole(x), ones.size() * sizeof(float), *stream);
  std::vector<double> times;
  for (int repeat = 0; repeat < 6; ++repeat) {
    for (const auto& weight : weights) {
      LinearArgs args;
      args.weight = weight.get();
      args.x = Whole(x);
      args.out = Whole(out);
      args.tokens = c.tokens;
      const auto start = std::chrono::steady_clock::now();
      k.Linear(args, *stream);
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      if (repeat > 0) times.push_back(took.count());  // the first pass touches everything
    }
  }
  const auto at = times.begin() + static_cast<std::ptrdiff_t>(times.size() / 5);
  std::nth_element(times.begin(), at, times.end());
  return *at;
}

void RunCases(Kernels& kernels, const Settings& s, DType dtype) {
  const std::vector<std::byte> file = RandomWeights(dtype, s.rows, s.cols);
  const std::int64_t one = BytesFor(dtype, s.cols) * s.rows;
  const std::int64_t count = std::max<std::int64_t>(1, (s.mib << 20) / one);
  MatrixPart part{dtype, file.data(), s.rows, BytesFor(dtype, s.cols)};
  std::vector<std::unique_ptr<Matrix>> weights;
  for (std::int64_t i = 0; i < count; ++i) {
    weights.push_back(kernels.Pack({&part, 1}, s.cols).value());
  }
  for (const int tokens : s.tokens) {
    const double seconds = SecondsPerOp({kernels, s, dtype, tokens}, weights);
    const double bytes = static_cast<double>(weights.front()->bytes());
    const double flop = 2.0 * static_cast<double>(s.cols * s.rows) * tokens;
    std::printf("%-7s %-5s tokens %4d  %9.1f us  %7.2f GB/s  %9.1f GFLOP/s\n",
                std::string(kernels.isa()).c_str(), std::string(Info(dtype).name).c_str(), tokens,
                seconds * 1e6, bytes / seconds * 1e-9, flop / seconds * 1e-9);
    std::fflush(stdout);
  }
}

int Main(int argc, char** argv) {
  const Settings s = Parse(argc, argv);
  std::printf("threads %d, W %ld x %ld, %ld MiB of weights\n", s.threads, static_cast<long>(s.rows),
              static_cast<long>(s.cols), static_cast<long>(s.mib));
  for (const std::string_view isa : cpu::AvailableIsas()) {
    if (s.isa != "all" && s.isa != isa) continue;
    KernelsOptions options;
    options.isa = std::string(isa);
    options.threads = s.threads;
    auto kernels = MakeKernels(options);
    if (!kernels.ok()) {
      std::fprintf(stderr, "%s\n", std::string(kernels.status().message()).c_str());
      return 1;
    }
    for (const DType dtype :
         {DType::kQ4_1, DType::kQ4_0, DType::kQ8_0, DType::kBF16, DType::kF16, DType::kF32}) {
      if (s.dtype == "all" || s.dtype == Info(dtype).name) RunCases(**kernels, s, dtype);
    }
  }
  return 0;
}

}  // namespace
}  // namespace metattn

int main(int argc, char** argv) { return metattn::Main(argc, argv); }
