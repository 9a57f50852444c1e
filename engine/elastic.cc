#include "engine/elastic.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "kernels/check.h"

namespace metattn {

void Elastic::Configure(const ElasticOptions& options, std::vector<float> floors) {
  METATTN_CHECK(!floors.empty() && floors.front() == 0, "level 0 changes nothing");
  METATTN_CHECK(std::is_sorted(floors.begin(), floors.end()), "levels ascend");
  const float present = floor();
  options_ = options;
  floors_ = std::move(floors);
  level_ = static_cast<std::size_t>(std::upper_bound(floors_.begin(), floors_.end(), present) -
                                    floors_.begin()) -
           1;
  high_since_.reset();
  calm_since_.reset();
}

void Elastic::Observe(double now_s, double queue_wait_s, double inter_token_s) {
  const double calm = options_.calm;
  const bool high = queue_wait_s > options_.queue_wait_s || inter_token_s > options_.inter_token_s;
  const bool low = queue_wait_s <= calm * options_.queue_wait_s &&
                   inter_token_s <= calm * options_.inter_token_s;
  if (!high) high_since_.reset();
  if (!low) calm_since_.reset();
  if (high && !high_since_) high_since_ = now_s;
  if (low && !calm_since_) calm_since_ = now_s;
  if (high && now_s - *high_since_ >= options_.raise_after_s && level_ + 1 < floors_.size()) {
    ++level_;
    high_since_ = now_s;
  }
  if (low && now_s - *calm_since_ >= options_.lower_after_s && level_ > 0) {
    --level_;
    calm_since_ = now_s;
  }
}

std::vector<float> ElasticFloors(const std::vector<float>& levels, float cost_weight, float most) {
  std::vector<float> floors = {0};
  for (const float level : levels) {
    if (level > cost_weight && level > floors.back() && level <= most) floors.push_back(level);
  }
  return floors;
}

void RecentMean::Add(double now_s, double value) {
  const double share = last_s_ ? 1 - std::exp(-std::max(0.0, now_s - *last_s_) / memory_s_) : 1;
  value_ += share * (value - value_);
  last_s_ = now_s;
}

}  // namespace metattn
