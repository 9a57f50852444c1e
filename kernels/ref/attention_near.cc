// Near partial: exact softmax over the sinks and the row's window, and its statistics for the
// controller; and the final o / l.
#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/check_args.h"
#include "kernels/ref/pages.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/ref/softmax.h"

namespace metattn::ref {
namespace {

double LogSumExp(std::span<const double> scores) {
  if (scores.empty()) return -std::numeric_limits<double>::infinity();
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - largest);
  return largest + std::log(sum);
}

// sum_j p_j score_j with p = softmax(scores).
double MeanScore(std::span<const double> scores) {
  const double lse = LogSumExp(scores);
  double mean = 0;
  for (const double score : scores) mean += std::exp(score - lse) * score;
  return mean;
}

}  // namespace

void RefKernels::Near(const NearArgs& args, Stream&) {
  CheckArgs(args);
  const int d = args.pages.head_dim, q_heads = args.pages.heads * args.group;
  const auto* position = args.rows.position.As<std::int32_t>();
  const auto* sequence = args.rows.sequence.As<std::int32_t>();
  const auto* near_begin = args.rows.near_begin.As<std::int32_t>();
  const auto* far_end = args.rows.far_end.As<std::int32_t>();
  for (std::int64_t t = 0; t < args.rows.tokens; ++t) {
    const std::int64_t end = std::int64_t{position[t]} + 1;
    const std::int64_t sinks_end = std::min<std::int64_t>(args.rows.sinks, end);
    for (int hq = 0; hq < q_heads; ++hq) {
      const std::int64_t index = t * q_heads + hq;
      const float* q = args.q.As<float>() + index * d;
      Triple triple(d);
      std::vector<double> scores;  // the sinks' first
      auto add = [&](std::int64_t p) {
        const Place place = Locate(args.rows, args.pages, sequence[t], hq / args.group, p);
        scores.push_back(Score(q, place.k, d, args.scale));
        triple.Add(scores.back(), place.v);
      };
      for (std::int64_t p = 0; p < sinks_end; ++p) add(p);
      for (std::int64_t p = std::max(near_begin[t], args.rows.sinks); p < end; ++p) add(p);
      StoreTriple(triple, args.out.o.As<float>() + index * d, args.out.m.As<float>() + index,
                  args.out.l.As<float>() + index);
      if (args.stats && args.rows.Eligible(far_end[t])) {
        float* stats = args.stats.As<float>() + index * 2;
        stats[0] = static_cast<float>(LogSumExp(std::span(scores).first(sinks_end)));
        stats[1] = static_cast<float>(MeanScore(scores));
      }
    }
  }
}

void RefKernels::Normalize(const NormalizeArgs& args, Stream&) {
  CheckArgs(args);
  const auto* o = args.partial.o.As<float>();
  const auto* l = args.partial.l.As<float>();
  auto* out = args.out.As<float>();
  for (std::int64_t i = 0; i < args.tokens * args.heads; ++i) {
    for (int j = 0; j < args.head_dim; ++j) {
      out[i * args.head_dim + j] = o[i * args.head_dim + j] / l[i];
    }
  }
}

}  // namespace metattn::ref
