#include "kernels/cpu/linear_plan.h"

#include <algorithm>
#include <vector>

#include "kernels/types.h"

namespace metattn::cpu {
namespace {

struct Lists {
  std::vector<KeyBlock> keys;
  std::vector<StatePath> paths;
  std::vector<std::int32_t> path_of, eligible, listed, path_of_group;
  std::int32_t tails = 0, copies = 0;

  void Clear() {
    keys.clear();
    paths.clear();
    path_of.clear();
    eligible.clear();
    listed.clear();
    path_of_group.clear();
    tails = copies = 0;
  }

  LinearPlan View() const {
    return {.keys = keys.data(),
            .paths = paths.data(),
            .path_of = path_of.data(),
            .eligible = eligible.data(),
            .listed = listed.empty() ? nullptr : listed.data(),
            .key_count = static_cast<std::int32_t>(keys.size()),
            .path_count = static_cast<std::int32_t>(paths.size()),
            .eligible_count = static_cast<std::int32_t>(eligible.size()),
            .tail_count = tails,
            .group_count = static_cast<std::int32_t>(path_of_group.size()),
            .copy_count = copies,
            .path_of_group = path_of_group.data()};
  }
};

thread_local Lists lists;

// Keys of the block before `end` that linear attention reads.
void AddBlock(const AttentionRows& rows, std::int32_t sequence, std::int32_t block,
              std::int32_t end) {
  const std::int32_t first = std::clamp(rows.linear_begin - block * kBlockTokens, 0, kBlockTokens);
  lists.keys.push_back({sequence, block, first, end, -1});
}

// Adds the path of a sequence; its first block is number `held`.
void AddPath(const AttentionRows& rows, std::int32_t sequence, std::int32_t held,
             std::int32_t taken) {
  const auto path = static_cast<std::int32_t>(lists.paths.size());
  const auto first_group = static_cast<std::int32_t>(lists.path_of_group.size());
  lists.paths.push_back({sequence, held, static_cast<std::int32_t>(lists.keys.size()), taken,
                         first_group, lists.copies});
  lists.path_of_group.insert(lists.path_of_group.end(), static_cast<std::size_t>(taken) + 1, path);
  if (taken > 0) lists.copies += taken + 1;
  for (std::int32_t i = 0; i < taken; ++i) AddBlock(rows, sequence, held + i, kBlockTokens);
}

// Marks the blocks of the last path that rows read in part.
void AddTails(const AttentionRows& rows, std::int32_t begin, std::int32_t end) {
  const StatePath path = lists.paths.back();
  const auto* linear_end = rows.linear_end.As<std::int32_t>();
  for (std::int32_t t = begin; t < end; ++t) {
    const std::int32_t block = linear_end[t] / kBlockTokens;
    const std::int32_t part = linear_end[t] % kBlockTokens;
    if (part == 0) continue;
    const auto at = static_cast<std::size_t>(path.first_key + block - path.held);
    if (at == lists.keys.size()) AddBlock(rows, path.sequence, block, part);
    KeyBlock& key = lists.keys[at];
    key.end = std::max(key.end, part);  // rows ascend: a block that is not taken grows
    if (key.tail < 0) key.tail = lists.tails++;
  }
}

void SplitList(const AttentionRows& rows, const WorkList& list, int heads) {
  const auto* row_begin = rows.row_begin.As<std::int32_t>();
  const auto* counts = list.counts.As<std::int32_t>();
  for (int h = 0; h < heads; ++h) {
    const auto* listed = list.rows.As<std::int32_t>() + h * list.capacity;
    std::int32_t at = 0;
    for (const StatePath& path : lists.paths) {
      lists.listed.push_back(at);
      while (at < counts[h] && listed[at] < row_begin[path.sequence + 1]) ++at;
    }
    lists.listed.push_back(at);
  }
}

}  // namespace

LinearPlan PlanAbsorb(const AttentionRows& rows, std::int32_t limit, AbsorbCursor* cursor) {
  lists.Clear();
  if (rows.tokens == 0) return lists.View();
  const auto* row_begin = rows.row_begin.As<std::int32_t>();
  const auto* linear_end = rows.linear_end.As<std::int32_t>();
  const auto* state_end = rows.state_end.As<std::int32_t>();
  for (; cursor->sequence < rows.sequences && limit > 0; *cursor = {cursor->sequence + 1, 0}) {
    const std::int32_t s = cursor->sequence;
    if (row_begin[s] == row_begin[s + 1]) continue;
    const std::int32_t held = state_end[s] / kBlockTokens + cursor->taken;
    const std::int32_t left = linear_end[row_begin[s]] / kBlockTokens - held;
    if (left <= 0) continue;
    const std::int32_t taken = std::min(left, limit);
    AddPath(rows, s, held, taken);
    limit -= taken;
    if (taken == left) continue;
    cursor->taken += taken;
    break;
  }
  return lists.View();
}

LinearPlan PlanRows(const AttentionRows& rows, const WorkList* list, int heads) {
  lists.Clear();
  if (rows.tokens == 0) return lists.View();
  const auto* row_begin = rows.row_begin.As<std::int32_t>();
  const auto* linear_end = rows.linear_end.As<std::int32_t>();
  const auto* far_end = rows.far_end.As<std::int32_t>();
  for (std::int32_t s = 0; s < rows.sequences; ++s) {
    const std::int32_t begin = row_begin[s], end = row_begin[s + 1];
    lists.path_of.push_back(static_cast<std::int32_t>(lists.paths.size()));
    if (begin == end) continue;
    const std::int32_t held = linear_end[begin] / kBlockTokens;
    AddPath(rows, s, held, linear_end[end - 1] / kBlockTokens - held);
    AddTails(rows, begin, end);
  }
  for (std::int32_t t = 0; t < rows.tokens; ++t) {
    if (rows.Eligible(far_end[t])) lists.eligible.push_back(t);
  }
  if (list != nullptr) SplitList(rows, *list, heads);
  return lists.View();
}

}  // namespace metattn::cpu
