// Which rank reads far pages of which KV head for its home, and which rows of a step: pure.
//
// Whole KV heads do not always divide by the ranks; what a rank has beyond its share goes to ranks
// that have less, a head's rows split between them (design section 6). Worked example (also a
// test): 3 heads on two equal ranks, 2 + 1, give one link: rank 1 reads half of the rows of head 1
// for rank 0. Where heads divide there is no link and nothing is done. Deterministic: every rank
// computes the same. Cost: some operations per rank at start and per row in a step.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/shard_planner.h"

namespace metattn {

struct HelperLink {
  int home = 0, helper = 0;  // ranks
  int head = 0;              // of the model's KV heads, one of home's
  double share = 0;          // of its far work that the helper is to do, at most 1
  bool operator==(const HelperLink&) const = default;
};

// weights: as PlanSlices was given. At most R - 1 links for what it made of them; a head may be in
// several.
std::vector<HelperLink> PlanHelpers(std::span<const Slice> slices, std::span<const double> weights);

// Rows that a helper's bucket has room for in a step of `rows` rows of one sequence each.
std::int64_t BucketRows(const HelperLink& link, std::int64_t rows);

// 1 for the rows of a step that the link's helper is to read: the longest first, of equal ones the
// last, as long as they are `free` and their far tokens fit into the link's share of those of all
// rows. So a lone row is never moved: that would only change which rank is late.
std::vector<std::uint8_t> ChooseHelped(const HelperLink& link,
                                       std::span<const std::int32_t> far_tokens,
                                       std::span<const std::uint8_t> free);

}  // namespace metattn
