// Linear attention: states brought forward block by block, what they would weigh, and their merge
// into the near partial.
//
// The sums of one block are taken in double and added to the f32 state with one rounding, so a
// state does not depend on the steps that built it.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/check_args.h"
#include "kernels/ref/pages.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/ref/softmax.h"

namespace metattn::ref {
namespace {

using Doubles = std::vector<double>;

std::int64_t WholeBlocks(std::int64_t end) { return end / kBlockTokens * kBlockTokens; }

// Appends softmax(sign y) to `phi`.
void AppendSoftmax(const Doubles& y, double sign, Doubles* phi) {
  double largest = -std::numeric_limits<double>::infinity(), sum = 0;
  for (double value : y) largest = std::max(largest, sign * value);
  for (double value : y) sum += std::exp(sign * value - largest);
  for (double value : y) phi->push_back(std::exp(sign * value - largest) / sum);
}

// phi(x); weights [d, d] bf16 of the query head or KV head, absent for elu1.
Doubles Phi(FeatureMap map, const std::uint16_t* weights, const Doubles& x) {
  Doubles phi;
  if (map == FeatureMap::kEluPlusOne) {
    for (double value : x) phi.push_back(value > 0 ? value + 1 : std::exp(value));
    return phi;
  }
  const std::size_t d = x.size();
  Doubles y(d);
  for (std::size_t r = 0; r < d; ++r) {
    for (std::size_t i = 0; i < d; ++i) y[r] += Bf16ToF32(weights[r * d + i]) * x[i];
  }
  AppendSoftmax(y, 1, &phi);
  AppendSoftmax(y, -1, &phi);
  return phi;
}

// The linear state of one sequence and KV head on its way through a step.
class Shard {
 public:
  // Starts from the state in memory, which holds the keys before `end`; 0: nothing yet.
  Shard(const LinearShape& shape, int sequence, int head, std::int64_t end)
      : shape_(shape),
        sequence_(sequence),
        head_(head),
        d_(shape.pages.head_dim),
        features_(Features(shape.map, d_)),
        end_(end),
        state_(static_cast<std::size_t>(features_) * (d_ + 1)) {
    if (end > 0) std::copy_n(Memory(), state_.size(), state_.begin());
  }

  // Adds the keys up to the last whole block before `end`.
  void Advance(std::int64_t end) {
    for (; end_ < WholeBlocks(end); end_ += kBlockTokens) {
      Doubles sums(state_.size());
      ForKeys(end_ + kBlockTokens, [&](const Doubles& phi, const std::uint16_t* v) {
        for (int f = 0; f < features_; ++f) {
          for (int i = 0; i < d_; ++i) sums[f * d_ + i] += phi[f] * Bf16ToF32(v[i]);
          sums[features_ * d_ + f] += phi[f];
        }
      });
      for (std::size_t i = 0; i < sums.size(); ++i) {
        state_[i] = static_cast<float>(state_[i] + sums[i]);
      }
    }
  }

  // phi(q) z over the keys before `end`, and phi(q) S in `value` unless it is null. The shard
  // stands at the last whole block before `end`.
  double Read(const float* phi_q, std::int64_t end, Doubles* value) const {
    double weight = 0;
    for (int f = 0; f < features_; ++f) {
      weight += double{phi_q[f]} * state_[features_ * d_ + f];
      if (value == nullptr) continue;
      for (int i = 0; i < d_; ++i) (*value)[i] += double{phi_q[f]} * state_[f * d_ + i];
    }
    ForKeys(end, [&](const Doubles& phi, const std::uint16_t* v) {
      double similarity = 0;
      for (int f = 0; f < features_; ++f) similarity += phi_q[f] * phi[f];
      weight += similarity;
      if (value == nullptr) return;
      for (int i = 0; i < d_; ++i) (*value)[i] += similarity * Bf16ToF32(v[i]);
    });
    return weight;
  }

  // A state that holds no block has no memory: what lies there stays.
  void Store() const {
    if (end_ > 0) std::copy(state_.begin(), state_.end(), Memory());
  }

 private:
  float* Memory() const {
    const std::int64_t slot = shape_.rows.state_slot.As<std::int32_t>()[sequence_];
    const std::int64_t place = slot * shape_.states.slot_stride + head_;
    return shape_.states.base.As<float>() + place * (StateBytes(features_, d_) / 4);
  }

  // Calls add(phi(k), v) for the keys from where the state ends to `end`.
  template <typename Add>
  void ForKeys(std::int64_t end, Add add) const {
    const auto* weights = shape_.w_k.As<std::uint16_t>();
    if (weights != nullptr) weights += std::int64_t{head_} * d_ * d_;
    for (std::int64_t p = std::max<std::int64_t>(end_, shape_.rows.linear_begin); p < end; ++p) {
      const Place place = Locate(shape_.rows, shape_.pages, sequence_, head_, p);
      Doubles k;
      for (int i = 0; i < d_; ++i) k.push_back(Bf16ToF32(place.k[i]));
      add(Phi(shape_.map, weights, k), place.v);
    }
  }

  const LinearShape& shape_;
  const int sequence_, head_, d_, features_;
  std::int64_t end_;
  std::vector<float> state_;  // S [f, d], z [f]
};

// Calls each(sequence, first row, row after the last) for the sequences that have rows.
template <typename Each>
void ForSequences(const AttentionRows& rows, Each each) {
  const auto* row_begin = rows.row_begin.As<std::int32_t>();
  for (int s = 0; rows.tokens > 0 && s < rows.sequences; ++s) {
    if (row_begin[s] < row_begin[s + 1]) each(s, row_begin[s], row_begin[s + 1]);
  }
}

// Odds of one row and query head; also writes phi(q).
void RowOdds(const LinearOddsArgs& args, const Shard& shard, std::int64_t row, int q_head) {
  const int d = args.shape.pages.head_dim, features = Features(args.shape.map, d);
  const std::int64_t index = row * args.shape.pages.heads * args.shape.group + q_head;
  const float* q = args.q.As<float>() + index * d;
  const auto* weights = args.w_q.As<std::uint16_t>();
  if (weights != nullptr) weights += std::int64_t{q_head} * d * d;
  const Doubles phi = Phi(args.shape.map, weights, Doubles(q, q + d));
  float* out = args.phi_q.As<float>() + index * features;
  std::copy(phi.begin(), phi.end(), out);
  const double weight =
      shard.Read(out, args.shape.rows.linear_end.As<std::int32_t>()[row], nullptr);
  const double near_lse =
      args.near.m.As<float>()[index] + std::log(double{args.near.l.As<float>()[index]});
  args.lse_far.As<float>()[index] =
      static_cast<float>(std::log(weight) + args.log_gain.As<float>()[q_head] +
                         args.kappa.As<float>()[q_head] * near_lse);
}

// Merges linear attention into the partial of one row and query head.
void MergeRow(const FarLinearArgs& args, const Shard& shard, std::int64_t row, int q_head) {
  const int d = args.shape.pages.head_dim, features = Features(args.shape.map, d);
  const std::int64_t index = row * args.shape.pages.heads * args.shape.group + q_head;
  const float lse = args.lse_far.As<float>()[index];
  float* o = args.partial.o.As<float>() + index * d;
  float* m = args.partial.m.As<float>() + index;
  float* l = args.partial.l.As<float>() + index;
  if (lse == -std::numeric_limits<float>::infinity()) return;  // weighs nothing
  Triple far(d);
  const double weight = shard.Read(args.phi_q.As<float>() + index * features,
                                   args.shape.rows.linear_end.As<std::int32_t>()[row], &far.o);
  for (double& value : far.o) value /= weight;
  far.m = lse;
  far.l = 1;
  Triple triple = args.alone ? Triple(d) : LoadTriple(o, m, l, d);
  triple.Merge(far);
  StoreTriple(triple, o, m, l);
}

}  // namespace

void RefKernels::LinearAbsorb(const LinearAbsorbArgs& args, Stream&) {
  CheckArgs(args);
  const auto* linear_end = args.shape.rows.linear_end.As<std::int32_t>();
  const auto* state_end = args.shape.rows.state_end.As<std::int32_t>();
  ForSequences(args.shape.rows, [&](int s, std::int64_t begin, std::int64_t) {
    for (int h = 0; h < args.shape.pages.heads; ++h) {
      Shard shard(args.shape, s, h, state_end[s]);
      shard.Advance(linear_end[begin]);
      shard.Store();
    }
  });
}

void RefKernels::LinearOdds(const LinearOddsArgs& args, Stream&) {
  CheckArgs(args);
  const AttentionRows& rows = args.shape.rows;
  const int group = args.shape.group;
  const std::int64_t q_heads = std::int64_t{args.shape.pages.heads} * group;
  const auto* linear_end = rows.linear_end.As<std::int32_t>();
  const auto* far_end = rows.far_end.As<std::int32_t>();
  ForSequences(rows, [&](int s, std::int64_t begin, std::int64_t end) {
    for (int h = 0; h < args.shape.pages.heads; ++h) {
      Shard shard(args.shape, s, h, WholeBlocks(linear_end[begin]));
      for (std::int64_t t = begin; t < end; ++t) {
        shard.Advance(linear_end[t]);
        for (int hq = h * group; hq < (h + 1) * group; ++hq) {
          if (rows.Eligible(far_end[t])) {
            RowOdds(args, shard, t, hq);
          } else {
            args.lse_far.As<float>()[t * q_heads + hq] = -std::numeric_limits<float>::infinity();
          }
        }
      }
    }
  });
}

void RefKernels::FarLinear(const FarLinearArgs& args, Stream&) {
  CheckArgs(args);
  const int group = args.shape.group;
  const auto* linear_end = args.shape.rows.linear_end.As<std::int32_t>();
  for (int h = 0; h < args.shape.pages.heads; ++h) {
    const auto* listed = args.list.rows.As<std::int32_t>() + h * args.list.capacity;
    const auto* listed_end = listed + args.list.counts.As<std::int32_t>()[h];
    ForSequences(args.shape.rows, [&](int s, std::int64_t begin, std::int64_t end) {
      Shard shard(args.shape, s, h, WholeBlocks(linear_end[begin]));
      for (; listed != listed_end && *listed < end; ++listed) {
        shard.Advance(linear_end[*listed]);
        for (int hq = h * group; hq < (h + 1) * group; ++hq) MergeRow(args, shard, *listed, hq);
      }
      shard.Advance(linear_end[end - 1]);
      shard.Store();
    });
  }
}

}  // namespace metattn::ref
