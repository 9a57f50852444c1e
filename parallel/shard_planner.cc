#include "parallel/shard_planner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/str_format.h"

namespace metattn {
namespace {

// Shares closer than this to a whole unit are that unit, and remainders closer than this tie: so
// rounding noise in the weights (0.1 + 0.2 against 0.3) never moves a slice.
constexpr double kNoise = 1e-9;

struct Portions {
  std::int64_t units = 0;    // to hand out
  std::int64_t minimum = 0;  // units every rank gets at least; minimum * ranks <= units
};

// Real-valued shares x >= minimum with sum(x) = units and x / weight equal wherever x > minimum. A
// rank that would fall below its minimum is pinned there, which lowers the level of the others, so
// pinned ranks stay pinned and at most one pass per rank is needed.
std::vector<double> LevelShares(const Portions& p, std::span<const double> weights) {
  const std::size_t ranks = weights.size();
  std::vector<double> shares(ranks, static_cast<double>(p.minimum));
  std::vector<bool> pinned(ranks, false);
  for (bool changed = true; changed;) {
    double units = static_cast<double>(p.units);
    double weight = 0;
    for (std::size_t r = 0; r < ranks; ++r) {
      units -= pinned[r] ? static_cast<double>(p.minimum) : 0;
      weight += pinned[r] ? 0 : weights[r];
    }
    changed = false;
    for (std::size_t r = 0; r < ranks; ++r) {
      if (pinned[r]) continue;
      shares[r] = units * (weights[r] / weight);
      if (shares[r] < static_cast<double>(p.minimum)) {
        shares[r] = static_cast<double>(p.minimum);
        pinned[r] = changed = true;
      }
    }
  }
  return shares;
}

// Whole units by largest remainder of the shares; ties go to the lower rank.
std::vector<std::int64_t> Apportion(const Portions& p, std::span<const double> weights) {
  const std::vector<double> shares = LevelShares(p, weights);
  const std::size_t ranks = weights.size();
  std::vector<std::int64_t> units(ranks);
  std::vector<std::int64_t> remainder(ranks);  // in multiples of kNoise, so that ties are exact
  for (std::size_t r = 0; r < ranks; ++r) {
    units[r] = std::max(p.minimum, static_cast<std::int64_t>(std::floor(shares[r] + kNoise)));
    remainder[r] = std::llround((shares[r] - static_cast<double>(units[r])) / kNoise);
  }
  std::vector<std::size_t> order(ranks);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return remainder[a] > remainder[b]; });
  std::int64_t rest = p.units - std::accumulate(units.begin(), units.end(), std::int64_t{0});
  for (std::size_t i = 0; rest > 0; i = (i + 1) % ranks, --rest) ++units[order[i]];
  return units;
}

absl::Status CheckShape(const SliceShape& s) {
  if (s.kv_heads <= 0 || s.group <= 0 || s.head_dim <= 0 || s.hidden <= 0 || s.ffn <= 0 ||
      s.vocab <= 0 || s.column_unit <= 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "cannot cut a model with %d KV heads, group %d, head width %d, hidden %d, FFN %d, "
        "vocabulary %d, column unit %d: all must be positive",
        s.kv_heads, s.group, s.head_dim, s.hidden, s.ffn, s.vocab, s.column_unit));
  }
  return absl::OkStatus();
}

absl::Status CheckWeights(std::span<const double> weights) {
  if (weights.empty()) {
    return absl::InvalidArgumentError("--rank-weights: at least one rank is needed");
  }
  double sum = 0;
  for (std::size_t r = 0; r < weights.size(); ++r) {
    if (!std::isfinite(weights[r]) || weights[r] <= 0) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "--rank-weights: the weight of rank %d is %g; it must be positive and finite", r,
          weights[r]));
    }
    sum += weights[r];
  }
  const double least = *std::min_element(weights.begin(), weights.end());
  if (!std::isfinite(sum) || least / sum < kNoise) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "--rank-weights: the least weight %g is too small beside the sum %g", least, sum));
  }
  return absl::OkStatus();
}

absl::Status CheckCut(const SliceShape& s, std::int64_t ranks) {
  if (ranks == 1) return absl::OkStatus();  // nothing is cut
  const std::int64_t head_width = std::int64_t{s.group} * s.head_dim;
  if (head_width % s.column_unit != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a KV head with its %d query heads is %d columns of the output projection "
                        "wide, no multiple "
                        "of the quantisation block of %d values: this model runs on one rank only",
                        s.group, head_width, s.column_unit));
  }
  if (s.ffn % s.column_unit != 0) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d MLP columns are no multiple of the quantisation block of %d values: this model runs on "
        "one rank only",
        s.ffn, s.column_unit));
  }
  if (ranks > s.ffn / s.column_unit) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "%d ranks are too many: the %d MLP columns can be cut into %d slices of %d; start at most "
        "%d ranks",
        ranks, s.ffn, s.ffn / s.column_unit, s.column_unit, s.ffn / s.column_unit));
  }
  if (ranks > s.vocab) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d ranks are too many for a vocabulary of %d; start at most %d ranks",
                        ranks, s.vocab, s.vocab));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Slice>> PlanSlices(const SliceShape& shape,
                                              std::span<const double> weights) {
  if (absl::Status s = CheckShape(shape); !s.ok()) return s;
  if (absl::Status s = CheckWeights(weights); !s.ok()) return s;
  const auto ranks = static_cast<std::int64_t>(weights.size());
  if (absl::Status s = CheckCut(shape, ranks); !s.ok()) return s;
  if (ranks == 1) return std::vector<Slice>{{0, shape.kv_heads, 0, shape.ffn, 0, shape.vocab}};

  const std::vector<std::int64_t> heads = Apportion({shape.kv_heads, 0}, weights);
  const std::vector<std::int64_t> columns = Apportion({shape.ffn / shape.column_unit, 1}, weights);
  const std::vector<std::int64_t> rows = Apportion({shape.vocab, 1}, weights);

  std::vector<Slice> slices(weights.size());
  Slice at;  // the end of what is handed out so far
  for (std::size_t r = 0; r < slices.size(); ++r) {
    at = {at.head_end,  at.head_end + static_cast<int>(heads[r]),
          at.ffn_end,   at.ffn_end + columns[r] * shape.column_unit,
          at.vocab_end, at.vocab_end + rows[r]};
    slices[r] = at;
  }
  return slices;
}

}  // namespace metattn
