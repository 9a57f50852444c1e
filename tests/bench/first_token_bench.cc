// What the first token costs after a second of idleness, when every rank sleeps, against one that
// comes back to back: the engine with ranks as threads, a tiny model. Design: under 1 ms more.
//   build/release/bin/first_token_bench
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

#include "tests/engine/serving_support.h"

namespace metattn::test {
namespace {

constexpr int kBusy = 20, kIdle = 5;

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

bool Measure(int ranks) {
  LocalServerOptions options;
  options.model = ServingModel();
  options.ranks = ranks;
  options.prefix_reuse = false;
  const auto server = Started(options);
  const GenerationRequest request = Greedy(Prompt(12, 20), 8);
  std::vector<double> busy, idle;
  for (int i = 0; i < kBusy + kIdle; ++i) {
    if (i >= kBusy) std::this_thread::sleep_for(std::chrono::seconds(1));
    const Answer answer = server->Generate(request);
    if (!answer.last.status.ok()) {
      std::fprintf(stderr, "%s\n", answer.last.status.ToString().c_str());
      return false;
    }
    (i < kBusy ? busy : idle).push_back(1e3 * answer.last.timings.time_to_first_token);
  }
  std::printf("%d ranks: first token back to back %.2f ms, after 1 s of idleness %.2f ms\n", ranks,
              Median(busy), Median(idle));
  return true;
}

}  // namespace
}  // namespace metattn::test

int main() { return metattn::test::Measure(1) && metattn::test::Measure(2) ? 0 : 1; }
