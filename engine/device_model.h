// What a step would take on a GPU if it reached the card's peaks: bytes and operations over
// bandwidth and throughput. A model, never a measurement: real kernels reach a part of the peaks,
// and time between kernels and ranks is not in it.
//
// Pure, thread safe, no errors. Products and attention follow each other; each takes the longer of
// its bytes and its operations. Left out: all-reduces, norms, sampling, the controller's own
// products. Cost: O(context) for prefill.
//
// Worked example (also a test): a card of 1 TB/s and 100 TFLOP/s, a rank with 1 GB of weights, 5e8
// parameters, 1e5 bytes of K/V a token and 4e5 operations for a token and its query. 10 sequences
// at context 1,000 take 1 ms for the weights (their operations 0.1 ms) and 1 ms for K/V: 2 ms.
// Routed with a quarter of the rows full, the rest local, window 256, 4 sinks: a row reads 300
// tokens near and a quarter of 700 far ones, 475 in all: 1.475 ms.
#pragma once

#include <string_view>
#include <vector>

namespace metattn {

struct DevicePeaks {
  std::string_view name, card;
  double bytes_per_second = 0;
  double flops = 0;  // dense bf16 on tensor cores; a multiply-add counts as two
};

// "a100", "h100", "b200", by that name; null for another.
const DevicePeaks* FindDevice(std::string_view name);
// "a100, b200, h100", for messages.
std::string_view DeviceNames();

// One rank's slice of a model.
struct RankWork {
  double layer_bytes = 0, layer_parameters = 0;  // matrices of all layers
  double head_bytes = 0, head_parameters = 0;    // the output head
  double kv_bytes = 0;                           // K and V of one token, all layers and KV heads
  double attention_flops = 0;  // one query row and one token, all layers and query heads
};

// What rows read (design section 3). Shares of eligible rows; full is what they leave.
struct AttentionReads {
  double linear = 0, local = 0;
  int window = 256, sinks = 4;
  bool exact_window = false, linear_all = false;
  double state_tokens = 0;  // what reading a linear state costs, in tokens of K/V
};

// Tokens of K/V that the row at `position` reads on average.
double TokensRead(const AttentionReads& reads, int position);

// Seconds of one step of `sequences` rows, each with `context` tokens, itself included.
double DecodeSeconds(const DevicePeaks& device, const RankWork& work, const AttentionReads& reads,
                     int sequences, int context);
// Seconds from the first token of a prompt to its logits, in steps of `chunk` tokens.
double PrefillSeconds(const DevicePeaks& device, const RankWork& work, const AttentionReads& reads,
                      int context, int chunk);

}  // namespace metattn
