#include "kernels/cpu/attention_plan.h"

#include <algorithm>
#include <vector>

#include "kernels/types.h"

namespace metattn::cpu {
namespace {

// Units a thread should get when the work allows it, so that the last to finish is not far behind.
constexpr int kUnitsPerThread = 8;

std::int32_t SpansUpTo(std::int32_t end) { return (end + kSpanTokens - 1) / kSpanTokens; }

class Planner {
 public:
  explicit Planner(const CutOptions& options)
      : group_(options.group), threads_(options.threads), tile_queries_(options.tile_queries) {
    ranges_.clear();
    tiles_.clear();
    units_.clear();
    costs_.clear();
  }

  // Rows must come head by head, and within a head in row order.
  void Add(std::int32_t head, std::int32_t sequence, const RowRange& range) {
    const int limit = std::max(1, tile_queries_ / group_);
    if (tiles_.empty() || tiles_.back().head != head || tiles_.back().sequence != sequence ||
        tiles_.back().rows == limit) {
      tiles_.push_back({.head = head,
                        .sequence = sequence,
                        .first_range = static_cast<std::int32_t>(ranges_.size()),
                        .rows = 0});
    }
    ranges_.push_back(range);
    ++tiles_.back().rows;
  }

  AttentionPlan Finish() {
    std::int64_t total = 0;
    for (Tile& tile : tiles_) total += costs_.emplace_back(Measure(tile));
    // A tile is shared when it alone would keep a thread busy for a large part of the op.
    const std::int64_t share =
        threads_ == 1 ? total + 1 : total / (std::int64_t{threads_} * kUnitsPerThread) + 1;
    AttentionPlan plan;
    for (std::size_t i = 0; i < tiles_.size(); ++i) {
      Tile& tile = tiles_[i];
      const bool split = costs_[i] > 2 * share;
      tile.units = split ? static_cast<std::int32_t>(
                               std::min<std::int64_t>(tile.spans, (costs_[i] - 1) / share + 1))
                         : 1;
      if (tile.units > 1) {
        tile.first_partial = plan.partials;
        plan.partials += std::int64_t{tile.spans} * tile.rows * group_;
      }
      for (std::int32_t u = 0; u < tile.units; ++u) {
        units_.push_back({static_cast<std::int32_t>(i), tile.spans * u / tile.units,
                          tile.spans * (u + 1) / tile.units});
      }
      plan.max_rows = std::max(plan.max_rows, tile.rows);
    }
    plan.ranges = ranges_.data();
    plan.tiles = tiles_.data();
    plan.units = units_.data();
    plan.tile_count = static_cast<std::int32_t>(tiles_.size());
    plan.unit_count = static_cast<std::int32_t>(units_.size());
    return plan;
  }

 private:
  // Fills in the tile's spans; returns its cost: tokens read times (reading + computing).
  std::int64_t Measure(Tile& tile) const {
    RowRange hull = ranges_[tile.first_range];
    for (std::int32_t r = 1; r < tile.rows; ++r) {
      const RowRange& range = ranges_[tile.first_range + r];
      hull.sinks_end = std::max(hull.sinks_end, range.sinks_end);
      if (range.begin >= range.end) continue;
      hull.begin = hull.begin >= hull.end ? range.begin : std::min(hull.begin, range.begin);
      hull.end = std::max(hull.end, range.end);
    }
    tile.sink_spans = SpansUpTo(hull.sinks_end);
    tile.spans = tile.sink_spans;
    if (hull.begin < hull.end) {
      tile.window_span = std::max(hull.begin / kSpanTokens, tile.sink_spans);
      tile.spans += std::max(0, SpansUpTo(hull.end) - tile.window_span);
    }
    const std::int64_t tokens = std::int64_t{hull.sinks_end} + std::max(0, hull.end - hull.begin);
    return tokens * (4 + std::int64_t{tile.rows} * group_);
  }

  int group_, threads_, tile_queries_;
  static thread_local std::vector<RowRange> ranges_;
  static thread_local std::vector<Tile> tiles_;
  static thread_local std::vector<Unit> units_;
  static thread_local std::vector<std::int64_t> costs_;
};

thread_local std::vector<RowRange> Planner::ranges_;
thread_local std::vector<Tile> Planner::tiles_;
thread_local std::vector<Unit> Planner::units_;
thread_local std::vector<std::int64_t> Planner::costs_;

}  // namespace

AttentionPlan PlanNear(const AttentionRows& rows, int heads, const CutOptions& options) {
  if (options.group == 0) return {};
  Planner planner(options);
  const auto* position = rows.position.As<std::int32_t>();
  const auto* sequence = rows.sequence.As<std::int32_t>();
  const auto* near_begin = rows.near_begin.As<std::int32_t>();
  for (std::int32_t h = 0; h < heads; ++h) {
    for (std::int32_t t = 0; t < rows.tokens; ++t) {
      const std::int32_t end = position[t] + 1;
      planner.Add(h, sequence[t],
                  {t, std::min(rows.sinks, end), std::max(near_begin[t], rows.sinks), end});
    }
  }
  return planner.Finish();
}

AttentionPlan PlanFar(const AttentionRows& rows, const WorkList& list, int heads,
                      const CutOptions& options) {
  if (options.group == 0) return {};
  Planner planner(options);
  const auto* sequence = rows.sequence.As<std::int32_t>();
  const auto* far_end = rows.far_end.As<std::int32_t>();
  const auto* counts = list.counts.As<std::int32_t>();
  for (std::int32_t h = 0; h < heads; ++h) {
    const auto* listed = list.rows.As<std::int32_t>() + h * list.capacity;
    for (std::int32_t i = 0; i < counts[h]; ++i) {
      const std::int32_t t = listed[i];
      if (far_end[t] > rows.sinks) planner.Add(h, sequence[t], {t, 0, rows.sinks, far_end[t]});
    }
  }
  return planner.Finish();
}

}  // namespace metattn::cpu
