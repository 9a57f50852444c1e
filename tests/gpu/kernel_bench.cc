// Speed of the CUDA kernels beside what the card can do at most; each op is compared with ref
// first.
//
//   kernel_bench            compares, then times on a real GPU
//   kernel_bench --verify   compares only; all that the emulation of tests/emu ever does
//
// A line: microseconds of one run (median of kGroups groups of runs, from the stream's events), the
// least bytes and operations it needs over that time, and their share of the card's peaks, which
// come from the clocks and widths that the runtime states. Exit status: 1 when an op differs from
// ref, 77 without a GPU.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/check.h"
#include "tests/gpu/bench_cases.h"
#include "tests/gpu/peaks.h"

namespace metattn::gpu_bench {
namespace {

using testing::Rig;

constexpr int kGroups = 7;
constexpr double kGroupSeconds = 0.02;
// Of the largest expected value: room for factors rounded to bf16 (2^-9 each, of terms that are
// several times larger than their sum), none for a wrong row. The tests of tests/kernels have
// bounds derived element by element.
constexpr float kTolerance = 1e-2F;

bool Same(const Case& actual, const Case& expected) {
  const std::vector<float> a = actual.result(), e = expected.result();
  METATTN_CHECK(a.size() == e.size() && !e.empty(), actual.name);
  float largest = 0, error = 0;
  bool finite = true;
  for (std::size_t i = 0; i < e.size(); ++i) {
    largest = std::max(largest, std::abs(e[i]));
    error = std::max(error, std::abs(a[i] - e[i]));
    finite = finite && std::isfinite(a[i]) && std::isfinite(e[i]);
  }
  const bool same = finite && largest > 0 && error <= kTolerance * largest;
  std::printf("%-28s %s ref: largest error %.2g of %.2g%s\n", actual.name.c_str(),
              same ? "agrees with" : "DIFFERS from", static_cast<double>(error),
              static_cast<double>(largest), finite ? "" : ", and not every value is finite");
  return same;
}

bool Verify(const std::vector<Maker>& makers) {
  bool same = true;
  for (const Maker& make : makers) {
    Rig cuda({.backend = "cuda"}), ref({.backend = "ref"});
    const std::vector<Case> actual = make(cuda, kSmall), expected = make(ref, kSmall);
    for (std::size_t i = 0; i < actual.size(); ++i) {
      actual[i].run();
      expected[i].run();
      same = Same(actual[i], expected[i]) && same;
    }
  }
  std::fflush(stdout);
  return same;
}

// Seconds of one run.
double Time(Rig& rig, const Case& c) {
  const auto group = [&](int runs) {
    rig.stream().ResetMarks();
    const int begin = rig.stream().Mark();
    for (int i = 0; i < runs; ++i) c.run();
    const int end = rig.stream().Mark();
    rig.Finish();
    return rig.stream().SecondsBetween(begin, end) / runs;
  };
  group(1);  // loads the kernel
  const int runs =
      static_cast<int>(std::clamp(kGroupSeconds / std::max(group(2), 1e-7), 1.0, 10000.0));
  std::vector<double> seconds;
  for (int i = 0; i < kGroups; ++i) seconds.push_back(group(runs));
  std::nth_element(seconds.begin(), seconds.begin() + kGroups / 2, seconds.end());
  return seconds[kGroups / 2];
}

std::string Share(double value, double peak) {
  char text[16] = "     ?";
  if (peak > 0) std::snprintf(text, sizeof text, "%5.1f%%", 100 * value / peak);
  return text;
}

void TimeAll(const std::vector<Maker>& makers, const Peaks& peaks) {
  std::printf(
      "\npeaks: %.0f GB/s, %.1f TFLOP/s f32, %.0f TFLOP/s bf16 on tensor cores (0: unknown)\n",
      peaks.bytes_per_second / 1e9, peaks.f32_flops / 1e12, peaks.bf16_flops / 1e12);
  std::printf("%-28s %10s %9s %7s %9s %7s %7s\n", "", "us", "GB/s", "of peak", "TFLOP/s", "of f32",
              "of bf16");
  for (const Maker& make : makers) {
    Rig rig({.backend = "cuda"});
    for (const Case& c : make(rig, kTimed)) {
      const double seconds = Time(rig, c);
      const double bytes = c.bytes / seconds, flops = c.flops / seconds;
      std::printf("%-28s %10.1f %9.1f %7s %9.3f %7s %7s\n", c.name.c_str(), seconds * 1e6,
                  bytes / 1e9, Share(bytes, peaks.bytes_per_second).c_str(), flops / 1e12,
                  Share(flops, peaks.f32_flops).c_str(), Share(flops, peaks.bf16_flops).c_str());
      std::fflush(stdout);
    }
  }
}

int Main(bool verify_only) {
  const auto card = DescribeCard(0);
  if (!card.ok()) {
    std::printf("gpu: skipped, %s\n", std::string(card.status().message()).c_str());
    return 77;
  }
  std::printf("%s, sm_%d%d, %d multiprocessors\n", card->name.c_str(), card->major, card->minor,
              card->multiprocessors);
  const std::vector<Maker> makers = Makers();
  if (!Verify(makers)) {
    std::printf("nothing is timed: results are wrong\n");
    return 1;
  }
  if (card->emulated) std::printf("emulated: compared, nothing to time\n");
  if (!card->emulated && !verify_only) TimeAll(makers, PeaksOf(*card));
  return 0;
}

}  // namespace
}  // namespace metattn::gpu_bench

int main(int argc, char** argv) {
  const bool verify_only = argc == 2 && std::strcmp(argv[1], "--verify") == 0;
  if (argc > 1 && !verify_only) {
    std::fprintf(stderr, "usage: kernel_bench [--verify]\n");
    return 2;
  }
  return metattn::gpu_bench::Main(verify_only);
}
