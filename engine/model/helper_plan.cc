#include "engine/model/helper_plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace metattn {
namespace {

// Shares that differ by less are rounding.
constexpr double kTiny = 1e-9;

}  // namespace

std::vector<HelperLink> PlanHelpers(std::span<const Slice> slices,
                                    std::span<const double> weights) {
  const double weight = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<double> excess;  // heads beyond the rank's share
  int heads = 0;
  for (const Slice& s : slices) heads += s.heads();
  for (std::size_t r = 0; r < slices.size(); ++r) {
    excess.push_back(slices[r].heads() - heads * weights[r] / weight);
  }
  std::vector<HelperLink> links;
  for (;;) {
    const auto [least, most] = std::ranges::minmax_element(excess);
    if (excess.empty() || *most < kTiny || *least > -kTiny) return links;
    const int home = static_cast<int>(most - excess.begin());
    // The last head of which something is left at home.
    int head = slices[home].head_end - 1;
    double left = 1;
    for (const HelperLink& link : links) {
      if (link.home != home) continue;
      if (link.head < head) head = link.head, left = 1;
      if (link.head == head) left -= link.share;
    }
    if (left < kTiny) --head, left = 1;
    const double share = std::min({*most, -*least, left});
    links.push_back({home, static_cast<int>(least - excess.begin()), head, share});
    *most -= share;
    *least += share;
  }
}

std::int64_t BucketRows(const HelperLink& link, std::int64_t rows) {
  return static_cast<std::int64_t>(std::ceil(link.share * static_cast<double>(rows) - kTiny));
}

std::vector<std::uint8_t> ChooseHelped(const HelperLink& link,
                                       std::span<const std::int32_t> far_tokens,
                                       std::span<const std::uint8_t> free) {
  std::vector<std::size_t> order(far_tokens.size());
  std::iota(order.rbegin(), order.rend(), std::size_t{0});
  std::ranges::stable_sort(order, std::greater(), [&](std::size_t i) { return far_tokens[i]; });
  const double all = std::accumulate(far_tokens.begin(), far_tokens.end(), 0.0);
  double left = link.share * all + kTiny;
  std::int64_t room = BucketRows(link, std::ssize(far_tokens));
  std::vector<std::uint8_t> helped(far_tokens.size());
  for (const std::size_t row : order) {
    const std::int32_t tokens = far_tokens[row];
    if (free[row] == 0 || tokens == 0 || tokens > left || room == 0) continue;
    left -= tokens;
    --room;
    helped[row] = 1;
  }
  return helped;
}

}  // namespace metattn
