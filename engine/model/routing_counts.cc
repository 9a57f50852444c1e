#include "engine/model/routing_counts.h"

#include <algorithm>
#include <cstring>

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
  routed_rows += other.routed_rows;
  uncertainty += other.uncertainty;
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

StepRouting CountRouting(const CountArgs& a) {
  StepRouting routing;
  routing.layers.resize(static_cast<std::size_t>(a.layers));
  routing.sequences.resize(static_cast<std::size_t>(a.sequences));
  const bool decided = !a.uncertainty.empty();
  std::size_t at = 0;  // (layer, row, head)
  for (RoutingCounts& layer : routing.layers) {
    for (std::size_t t = 0; t < a.position.size(); ++t) {
      const std::int64_t n = a.position[t] + 1, far = a.far_end[t] - a.costs.sinks;
      const bool eligible = far > 0;
      RoutingCounts row;
      for (int h = 0; h < a.heads; ++h, ++at) {
        row.bytes_dense += n * a.costs.token.bytes;
        row.flops_dense += n * a.costs.token.flops;
        Spend(row, a.costs.token, eligible ? n - far : n);
        if (!eligible) continue;
        Spend(row, a.costs.features, 1);
        const auto mechanism = static_cast<Mechanism>(a.decisions[at]);
        ++row.rows[a.decisions[at]];
        if (mechanism == Mechanism::kFull) Spend(row, a.costs.token, far);
        if (mechanism == Mechanism::kLinear) Spend(row, a.costs.state, 1);
        if (!decided || a.routed[t] == 0) continue;
        const float u = a.uncertainty[at];
        ++row.routed_rows;
        row.uncertainty += u;
        const int bucket = static_cast<int>(u * kUncertaintyBuckets);
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
