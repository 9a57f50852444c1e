#include "engine/device_model.h"

#include <algorithm>

#include "kernels/types.h"

namespace metattn {
namespace {

// NVIDIA's public datasheets, of the SXM modules; throughput without sparsity (half of what they
// print with it): "A100 80GB" (2,039 GB/s, 312 TFLOP/s), "H100" (3.35 TB/s, 1,979 / 2), "HGX B200"
// (8 TB/s, 4,500 / 2 a GPU).
constexpr DevicePeaks kDevices[] = {{"a100", "A100 SXM 80 GB", 2039e9, 312e12},
                                    {"b200", "B200 SXM", 8000e9, 2250e12},
                                    {"h100", "H100 SXM 80 GB", 3350e9, 989.5e12}};

double Longer(const DevicePeaks& device, double bytes, double flops) {
  return std::max(bytes / device.bytes_per_second, flops / device.flops);
}

int FarTokens(const AttentionReads& reads, int position) {
  int frontier = std::max(0, position - reads.window + 1);
  if (!reads.exact_window) frontier = frontier / kBlockTokens * kBlockTokens;
  return std::max(0, frontier - reads.sinks);
}

}  // namespace

const DevicePeaks* FindDevice(std::string_view name) {
  for (const DevicePeaks& device : kDevices) {
    if (device.name == name) return &device;
  }
  return nullptr;
}

std::string_view DeviceNames() { return "a100, b200, h100"; }

double TokensRead(const AttentionReads& reads, int position) {
  const double n = position + 1.0, far = FarTokens(reads, position), near = n - far;
  if (far == 0 && !reads.linear_all) return n;
  const double linear = std::min(n, (reads.linear_all ? 0 : near) + reads.state_tokens);
  return (1 - reads.linear - reads.local) * n + reads.local * near + reads.linear * linear;
}

double DecodeSeconds(const DevicePeaks& device, const RankWork& work, const AttentionReads& reads,
                     int sequences, int context) {
  const double tokens = sequences * TokensRead(reads, context - 1);
  return Longer(device, work.layer_bytes + work.head_bytes,
                2.0 * sequences * (work.layer_parameters + work.head_parameters)) +
         Longer(device, tokens * work.kv_bytes, tokens * work.attention_flops);
}

double PrefillSeconds(const DevicePeaks& device, const RankWork& work, const AttentionReads& reads,
                      int context, int chunk) {
  const bool far_read = reads.linear + reads.local < 1;
  double seconds = Longer(device, work.head_bytes, 2 * work.head_parameters);  // of the last row
  for (int begin = 0; begin < context; begin += chunk) {
    const int end = std::min(context, begin + chunk);
    double tokens = 0;
    for (int t = begin; t < end; ++t) tokens += TokensRead(reads, t);
    // Rows of a step share what they read: all of it, or what is near the first row and later.
    const double unread = far_read ? 0 : FarTokens(reads, begin);
    seconds += Longer(device, work.layer_bytes, 2 * work.layer_parameters * (end - begin)) +
               Longer(device, (end - unread) * work.kv_bytes, tokens * work.attention_flops);
  }
  return seconds;
}

}  // namespace metattn
