// Elastic routing: under load lambda moves up over a few fixed levels, and back when load is gone.
//
// Two signals: how long the longest waiting request waits, and the time between two tokens. One of
// them above its target for `raise_after_s`: one level up. Both at or below `calm` times their
// target for `lower_after_s`: one level down. In between, and right after a move, the times start
// anew, so that two moves are never closer than these. A request runs under the larger of its own
// cost weight and the level's: level 0 is 0, nobody's cost weight changes.
//
// Pure: no clock, times are arguments in seconds and never go back. One thread. Signals that are
// NaN are neither high nor calm.
//
// Example, levels {0, 0.5, 1}, targets 2 s and 0.25 s, raise after 2 s, lower after 10 s, calm 0.5:
//   at 0 s a request has waited 3 s; at 1 s still: nothing yet
//   at 2 s still: level 1 (0.5); at 4 s still: level 2 (1), the highest
//   at 6 s it is 1.5 s: below the target and not calm, level 2 stays
//   at 10 s nobody waits, tokens come every 0.1 s: calm; at 20 s level 1; at 30 s level 0
#pragma once

#include <cstddef>
#include <optional>
#include <vector>

namespace metattn {

struct ElasticOptions {
  double queue_wait_s = 2;  // targets
  double inter_token_s = 0.25;
  double raise_after_s = 2;
  double lower_after_s = 10;
  double calm = 0.5;  // of the targets
};

class Elastic {
 public:
  // floors: ascending, the first is 0. The level becomes the highest whose floor is not above the
  // present one. Both times start anew.
  void Configure(const ElasticOptions& options, std::vector<float> floors);
  void Observe(double now_s, double queue_wait_s, double inter_token_s);

  std::size_t level() const { return level_; }
  float floor() const { return floors_[level_]; }  // lambda is at least this

 private:
  ElasticOptions options_;
  std::vector<float> floors_ = {0};
  std::size_t level_ = 0;
  std::optional<double> high_since_, calm_since_;
};

// The levels of a controller as floors: 0, then those above the cost weight that requests have
// without asking, up to the operator's largest.
std::vector<float> ElasticFloors(const std::vector<float>& levels, float cost_weight, float most);

// A mean over about the last `memory_s` seconds of a value that comes at uneven times. Pure.
class RecentMean {
 public:
  explicit RecentMean(double memory_s) : memory_s_(memory_s) {}
  // The value held since the previous call.
  void Add(double now_s, double value);
  double value() const { return value_; }

 private:
  const double memory_s_;
  std::optional<double> last_s_;
  double value_ = 0;
};

}  // namespace metattn
