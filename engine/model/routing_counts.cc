#include "engine/model/routing_counts.h"

#include <algorithm>
#include <cstring>

#include "kernels/routing_ops.h"

namespace metattn {
namespace {

template <typename T>
void Append(std::vector<std::byte>& bytes, std::span<const T> values) {
  const auto view = std::as_bytes(values);
  bytes.insert(bytes.end(), view.begin(), view.end());
}

// Takes the front of `bytes`, which the caller knows to be long enough.
template <typename T>
T Take(std::span<const std::byte>& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  bytes = bytes.subspan(sizeof(T));
  return value;
}

void Spend(RoutingCounts& row, const Work& work, std::int64_t times) {
  row.bytes_read += work.bytes * times;
  row.flops += work.flops * times;
}

}  // namespace

void RoutingCounts::Add(const RoutingCounts& other) {
  bytes_read += other.bytes_read;
  bytes_dense += other.bytes_dense;
  flops += other.flops;
  flops_dense += other.flops_dense;
  for (std::size_t k = 0; k < rows.size(); ++k) rows[k] += other.rows[k];
  mixture_rows += other.mixture_rows;
  routed_rows += other.routed_rows;
  uncertainty += other.uncertainty;
  for (std::size_t k = 0; k < weights.size(); ++k) weights[k] += other.weights[k];
  expected_cost += other.expected_cost;
}

StepRouting StepRouting::Zero(std::size_t layers, std::size_t sequences, std::size_t shadow) {
  StepRouting zero;
  zero.layers.resize(layers);
  zero.sequences.resize(sequences);
  zero.shadow.resize(shadow);
  return zero;
}

RoutingCounts StepRouting::Total() const {
  RoutingCounts total;
  for (const RoutingCounts& layer : layers) total.Add(layer);
  return total;
}

void StepRouting::Add(const StepRouting& other) {
  const auto add = [](auto& to, const auto& from) {
    to.resize(std::max(to.size(), from.size()));
    for (std::size_t i = 0; i < from.size(); ++i) to[i].Add(from[i]);
  };
  add(layers, other.layers);
  add(sequences, other.sequences);
  add(shadow, other.shadow);
  for (std::size_t i = 0; i < histogram.size(); ++i) histogram[i] += other.histogram[i];
}

std::vector<std::byte> StepRouting::Encode() const {
  std::vector<std::byte> bytes;
  bytes.reserve(EncodedBytes());
  Append(bytes, std::span(layers));
  Append(bytes, std::span(sequences));
  Append(bytes, std::span(shadow));
  Append(bytes, std::span<const std::int64_t>(histogram));
  return bytes;
}

std::size_t StepRouting::EncodedBytes() const {
  return (layers.size() + sequences.size()) * sizeof(RoutingCounts) +
         shadow.size() * sizeof(ShadowErrors) + sizeof(histogram);
}

bool StepRouting::Merge(std::span<const std::byte> message) {
  if (message.size() != EncodedBytes()) return false;
  for (RoutingCounts& layer : layers) layer.Add(Take<RoutingCounts>(message));
  for (RoutingCounts& sequence : sequences) sequence.Add(Take<RoutingCounts>(message));
  for (ShadowErrors& layer : shadow) layer.Add(Take<ShadowErrors>(message));
  for (std::int64_t& bucket : histogram) bucket += Take<std::int64_t>(message);
  return true;
}

namespace {

// What is the same for all layers and heads of a row.
struct RowShape {
  std::int64_t tokens = 0;  // n
  std::int64_t far = 0;     // of those, in the far span
  std::int64_t beside = 0;  // keys that linear attention reads beside the state
  bool eligible = false;
};

RowShape ShapeOf(const CountArgs& a, std::size_t t) {
  RowShape row = {.tokens = a.position[t] + 1, .eligible = a.eligible[t] != 0};
  row.far = std::max(0, a.far_end[t] - a.costs.sinks);
  const std::int32_t end = a.linear_end[t];
  row.beside = std::max(0, end - std::max(a.costs.linear_begin, end / kBlockTokens * kBlockTokens));
  return row;
}

// What one eligible row and KV head read beyond the near partial.
void SpendOnDecision(const AttentionCosts& costs, const RowShape& row, std::uint8_t decision,
                     RoutingCounts& counts) {
  Spend(counts, costs.features, 1);
  Spend(counts, costs.key, row.beside);
  const bool mixture = decision == kMixture;
  if (mixture || decision == static_cast<std::uint8_t>(Mechanism::kFull)) {
    Spend(counts, costs.token, row.far);
  }
  if (mixture || decision == static_cast<std::uint8_t>(Mechanism::kLinear)) {
    Spend(counts, costs.state, 1);
    Spend(counts, costs.key_value, row.beside);
  }
  if (mixture) {
    ++counts.mixture_rows;
  } else {
    ++counts.rows[decision];
  }
}

// c_k of ControlArgs.
std::array<double, kMechanisms> CostsOf(const AttentionCosts& costs, const RowShape& row) {
  const auto n = static_cast<double>(row.tokens), near = static_cast<double>(row.tokens - row.far);
  const double linear = costs.state_tokens + (costs.linear_all ? 0 : near);
  return {1.0, std::min(1.0, linear / n), near / n};
}

// What the meta-controller said of one row and KV head.
void AddDecided(const CountArgs& a, const RowShape& row, std::size_t cell, RoutingCounts& counts) {
  ++counts.routed_rows;
  counts.uncertainty += a.uncertainty[cell];
  const std::array<double, kMechanisms> costs = CostsOf(a.costs, row);
  for (std::size_t k = 0; k < costs.size(); ++k) {
    const double weight = a.weights[cell * kMechanisms + k];
    counts.weights[k] += weight;
    counts.expected_cost += weight * costs[k];
  }
}

}  // namespace

StepRouting CountRouting(const CountArgs& a) {
  StepRouting routing;
  routing.layers.resize(static_cast<std::size_t>(a.layers));
  routing.sequences.resize(static_cast<std::size_t>(a.sequences));
  const bool decided = !a.uncertainty.empty();
  std::size_t at = 0;  // (layer, row, head)
  for (RoutingCounts& layer : routing.layers) {
    for (std::size_t t = 0; t < a.position.size(); ++t) {
      const RowShape shape = ShapeOf(a, t);
      RoutingCounts row;
      for (int h = 0; h < a.heads; ++h, ++at) {
        row.bytes_dense += shape.tokens * a.costs.token.bytes;
        row.flops_dense += shape.tokens * a.costs.token.flops;
        Spend(row, a.costs.token, shape.eligible ? shape.tokens - shape.far : shape.tokens);
        if (!shape.eligible) continue;
        SpendOnDecision(a.costs, shape, a.decisions[at], row);
        if (!decided || a.routed[t] == 0) continue;
        AddDecided(a, shape, at, row);
        const int bucket = static_cast<int>(a.uncertainty[at] * kUncertaintyBuckets);
        ++routing
              .histogram[static_cast<std::size_t>(std::clamp(bucket, 0, kUncertaintyBuckets - 1))];
      }
      layer.Add(row);
      routing.sequences[static_cast<std::size_t>(a.sequence[t])].Add(row);
    }
  }
  return routing;
}

}  // namespace metattn
