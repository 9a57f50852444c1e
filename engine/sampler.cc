#include "engine/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <vector>

#include "engine/logit_ops.h"
#include "kernels/check.h"

namespace metattn {
namespace {

constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

// Buffers of one thread, kept between tokens so that a token allocates nothing of size V.
struct Scratch {
  std::vector<std::int32_t> counts;  // [V], of the output; zero between calls
  std::vector<std::uint8_t> seen;    // [V], zero between calls
  std::vector<float> maxima;         // per chunk of the row
  std::vector<float> sorted_maxima;
  std::vector<float> weights;            // [V]
  std::vector<double> sums;              // per chunk of `weights`
  std::vector<std::int32_t> candidates;  // ids, ascending
  std::vector<float> candidate_weights;  // of the same ids
  std::vector<std::int32_t> ranked;      // a copy of ids that may be reordered
  std::vector<std::uint32_t> bins;       // histogram of logits
  std::vector<double> mass;              // histogram of weights
};

Scratch& ThreadScratch() {
  static thread_local Scratch scratch;
  return scratch;
}

// Most likely first, ties to the lower id.
struct Better {
  const float* logits;
  bool operator()(std::int32_t a, std::int32_t b) const {
    const float x = logits[a], y = logits[b];
    return x != y ? x > y : a < b;
  }
};

bool Penalises(const SamplingParams& p) {
  return p.repetition_penalty != 1.0 || p.presence_penalty != 0.0 || p.frequency_penalty != 0.0;
}

void Penalise(std::span<float> logits, const SamplingParams& params, std::int32_t id,
              std::int32_t output_count) {
  double x = logits[static_cast<std::size_t>(id)];
  x = x > 0 ? x / params.repetition_penalty : x * params.repetition_penalty;
  x -= params.frequency_penalty * output_count;
  if (output_count > 0) x -= params.presence_penalty;
  logits[static_cast<std::size_t>(id)] = static_cast<float>(x);
}

// Every distinct id of prompt and output once: O(prompt + output), counts reset on the way back.
void ApplyPenalties(std::span<float> logits, const SamplingParams& params,
                    const SampleContext& context, std::vector<std::int32_t>& counts,
                    std::vector<std::uint8_t>& seen) {
  const auto vocab = static_cast<std::int32_t>(logits.size());
  if (counts.size() < logits.size()) counts.resize(logits.size(), 0);
  if (seen.size() < logits.size()) seen.resize(logits.size(), 0);
  for (const std::int32_t id : context.output) {
    METATTN_CHECK(id >= 0 && id < vocab, "output id outside the vocabulary");
    ++counts[static_cast<std::size_t>(id)];
  }
  const auto once = [&](std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids) {
      METATTN_CHECK(id >= 0 && id < vocab, "prompt id outside the vocabulary");
      const auto i = static_cast<std::size_t>(id);
      if (seen[i] != 0) continue;
      seen[i] = 1;
      Penalise(logits, params, id, counts[i]);
    }
  };
  once(context.output);
  if (params.repetition_penalty != 1.0) once(context.prompt);
  for (const std::int32_t id : context.output) {
    seen[static_cast<std::size_t>(id)] = 0;
    counts[static_cast<std::size_t>(id)] = 0;
  }
  for (const std::int32_t id : context.prompt) seen[static_cast<std::size_t>(id)] = 0;
}

void Adjust(std::span<float> logits, const SamplingParams& params, const SampleContext& context,
            Scratch& scratch) {
  for (const auto& [id, bias] : params.logit_bias) {
    logits[static_cast<std::size_t>(id)] += static_cast<float>(bias);
  }
  if (Penalises(params)) {
    ApplyPenalties(logits, params, context, scratch.counts, scratch.seen);
  }
  for (const std::int32_t id : context.forbidden) {
    logits[static_cast<std::size_t>(id)] = kMinusInf;
  }
}

// First id whose logit equals the largest one; only chunks that hold it are read.
std::int32_t FirstOf(std::span<const float> logits, std::span<const float> maxima, float max) {
  for (std::size_t c = 0; c < maxima.size(); ++c) {
    if (maxima[c] != max) continue;
    const std::size_t end = std::min(logits.size(), (c + 1) * kLogitChunk);
    for (std::size_t i = c * kLogitChunk; i < end; ++i) {
      if (logits[i] == max) return static_cast<std::int32_t>(i);
    }
  }
  return 0;
}

// Bits of a float such that their order as integers is the order of the floats.
std::uint32_t OrderedBits(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

float FromOrderedBits(std::uint32_t ordered) {
  return std::bit_cast<float>((ordered & 0x80000000u) != 0 ? ordered & 0x7fffffffu : ~ordered);
}

// A value that at least k logits reach and not many more: the k-th largest chunk maximum when k is
// small, else the lower edge of the histogram bin in which the k-th largest logit lies.
float LowerBoundOfKth(std::span<const float> logits, std::size_t k, Scratch& scratch) {
  if (k <= scratch.maxima.size() / 8) {
    auto& sorted = scratch.sorted_maxima;
    sorted.assign(scratch.maxima.begin(), scratch.maxima.end());
    const auto kth = sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<float>());
    return *kth;
  }
  constexpr int kShift = 20;  // sign, exponent, 3 bits of mantissa
  auto& bins = scratch.bins;
  bins.assign(std::size_t{1} << (32 - kShift), 0);
  for (const float x : logits) {
    if (x > kMinusInf) ++bins[OrderedBits(x) >> kShift];
  }
  std::size_t reached = 0;
  for (std::size_t b = bins.size(); b > 0; --b) {
    reached += bins[b - 1];
    if (reached >= k) return FromOrderedBits(static_cast<std::uint32_t>(b - 1) << kShift);
  }
  return kMinusInf;
}

// The k best ids in ascending order of id (exactly k unless fewer are above -inf).
void TopK(std::span<const float> logits, std::size_t k, Scratch& scratch) {
  const float bound = LowerBoundOfKth(logits, k, scratch);
  auto& ids = scratch.candidates;
  ids.clear();
  for (std::size_t c = 0; c < scratch.maxima.size(); ++c) {
    if (scratch.maxima[c] < bound || scratch.maxima[c] == kMinusInf) continue;
    const std::size_t end = std::min(logits.size(), (c + 1) * kLogitChunk);
    for (std::size_t i = c * kLogitChunk; i < end; ++i) {
      if (logits[i] >= bound && logits[i] > kMinusInf) ids.push_back(static_cast<std::int32_t>(i));
    }
  }
  if (ids.size() <= k) return;
  const Better better{logits.data()};
  scratch.ranked.assign(ids.begin(), ids.end());
  const auto kth = scratch.ranked.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(scratch.ranked.begin(), kth, scratch.ranked.end(), better);
  std::erase_if(ids, [&](std::int32_t id) { return better(*kth, id); });
}

// Of the candidates whose bit pattern begins with `prefix` (that is, bits >> (shift + width)), the
// longer prefix (bits >> shift) at which the mass, counted from the largest down and starting at
// *reached, arrives at `wanted`. *reached becomes the mass above it. Bit patterns order positive
// floats, so this is one digit of a radix selection.
std::uint32_t BorderPrefix(Scratch& scratch, int shift, int width, std::uint32_t prefix,
                           double wanted, double* reached) {
  const std::uint32_t bins = 1u << width;
  scratch.mass.assign(bins, 0.0);
  for (const float w : scratch.candidate_weights) {
    const auto bits = std::bit_cast<std::uint32_t>(w);
    if (bits >> (shift + width) == prefix) {
      scratch.mass[(bits >> shift) & (bins - 1)] += static_cast<double>(w);
    }
  }
  std::uint32_t border = bins - 1;
  while (border > 0 && *reached + scratch.mass[border] < wanted) {
    *reached += scratch.mass[border--];
  }
  return (prefix << width) | border;
}

// Zeroes what lies outside the nucleus: the shortest run of most likely candidates whose mass
// reaches top_p of `total`. Two radix digits leave a few nearly equal weights to be sorted.
void KeepNucleus(double top_p, double total, Scratch& scratch) {
  auto& weights = scratch.candidate_weights;
  const double wanted = top_p * total;
  double reached = 0;
  constexpr int kFine = 8;
  const std::uint32_t coarse = BorderPrefix(scratch, 19, 12, 0, wanted, &reached);
  const std::uint32_t border = BorderPrefix(scratch, kFine, 19 - kFine, coarse, wanted, &reached);
  auto& ranked = scratch.ranked;  // indices into weights
  ranked.clear();
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const std::uint32_t prefix = std::bit_cast<std::uint32_t>(weights[i]) >> kFine;
    if (prefix < border) weights[i] = 0;
    if (prefix == border) ranked.push_back(static_cast<std::int32_t>(i));
  }
  std::sort(ranked.begin(), ranked.end(), Better{weights.data()});
  for (const std::int32_t i : ranked) {
    float& w = weights[static_cast<std::size_t>(i)];
    if (reached >= wanted) {
      w = 0;
    } else {
      reached += static_cast<double>(w);
    }
  }
}

// The candidate at which the running sum of weights, in order of id, passes the draw.
std::int32_t DrawCandidate(double uniform, const Scratch& scratch) {
  double total = 0;
  for (const float w : scratch.candidate_weights) total += static_cast<double>(w);
  const double target = uniform * total;
  double sum = 0;
  std::int32_t last = scratch.candidates.front();
  for (std::size_t i = 0; i < scratch.candidates.size(); ++i) {
    if (scratch.candidate_weights[i] <= 0) continue;
    last = scratch.candidates[i];
    sum += static_cast<double>(scratch.candidate_weights[i]);
    if (sum > target) return last;
  }
  return last;  // rounding of the sum
}

// Draw from the whole row: find the chunk by its sum, then the value in it.
std::int32_t DrawFromRow(double uniform, std::size_t vocab, const Scratch& scratch) {
  double total = 0;
  for (std::size_t c = 0; c < LogitChunks(vocab); ++c) total += scratch.sums[c];
  const double target = uniform * total;
  double before = 0;
  std::int32_t last = 0;
  for (std::size_t c = 0; c < LogitChunks(vocab); ++c) {
    if (scratch.sums[c] <= 0) continue;
    const bool here = before + scratch.sums[c] > target;
    const std::size_t end = std::min(vocab, (c + 1) * kLogitChunk);
    double sum = before;
    for (std::size_t i = c * kLogitChunk; here && i < end; ++i) {
      if (scratch.weights[i] <= 0) continue;
      last = static_cast<std::int32_t>(i);
      sum += static_cast<double>(scratch.weights[i]);
      if (sum > target) return last;
    }
    if (here) return last;  // the chunk's own sum was rounded up
    before += scratch.sums[c];
  }
  // Rounding: the draw lies past the last sum. The last id of positive weight is the answer.
  for (std::size_t i = vocab; i > 0; --i) {
    if (scratch.weights[i - 1] > 0) return static_cast<std::int32_t>(i - 1);
  }
  return last;
}

void WeighCandidates(std::span<const float> logits, float max, float inverse_temperature,
                     Scratch& scratch) {
  const std::size_t n = scratch.candidates.size();
  scratch.ranked.clear();
  scratch.candidate_weights.resize(n);
  scratch.weights.resize(std::max(scratch.weights.size(), n));
  scratch.sums.resize(std::max(scratch.sums.size(), LogitChunks(n)));
  for (std::size_t i = 0; i < n; ++i) {
    scratch.candidate_weights[i] = logits[static_cast<std::size_t>(scratch.candidates[i])];
  }
  ExpScaled(scratch.candidate_weights, max, inverse_temperature, scratch.weights, scratch.sums);
  std::copy_n(scratch.weights.begin(), n, scratch.candidate_weights.begin());
}

// Candidates of the whole row with a weight of at least `floor` (and above 0).
void Gather(std::size_t vocab, float floor, Scratch& scratch) {
  scratch.candidates.clear();
  scratch.candidate_weights.clear();
  for (std::size_t c = 0; c < LogitChunks(vocab); ++c) {
    if (scratch.sums[c] < static_cast<double>(floor)) continue;
    const std::size_t end = std::min(vocab, (c + 1) * kLogitChunk);
    for (std::size_t i = c * kLogitChunk; i < end; ++i) {
      if (scratch.weights[i] < floor || scratch.weights[i] <= 0) continue;
      scratch.candidates.push_back(static_cast<std::int32_t>(i));
      scratch.candidate_weights.push_back(scratch.weights[i]);
    }
  }
}

std::int32_t Draw(std::span<const float> logits, float max, const SamplingParams& params,
                  double uniform, Scratch& scratch) {
  const std::size_t vocab = logits.size();
  const auto inverse_temperature = static_cast<float>(std::min(1.0 / params.temperature, 1e30));
  const auto min_p = static_cast<float>(params.min_p);  // the largest weight is exactly 1
  double total = 0;
  if (params.top_k > 0 && static_cast<std::size_t>(params.top_k) < vocab) {
    TopK(logits, static_cast<std::size_t>(params.top_k), scratch);
    WeighCandidates(logits, max, inverse_temperature, scratch);
    for (float& w : scratch.candidate_weights) {
      if (w < min_p) w = 0;
      total += static_cast<double>(w);
    }
  } else {
    scratch.weights.resize(std::max(scratch.weights.size(), vocab));
    scratch.sums.resize(std::max(scratch.sums.size(), LogitChunks(vocab)));
    total = ExpScaled(logits, max, inverse_temperature, scratch.weights, scratch.sums);
    if (min_p <= 0 && params.top_p >= 1.0) return DrawFromRow(uniform, vocab, scratch);
    // Values below (1 - top_p) total / V together cannot hold what the nucleus leaves out, so the
    // nucleus ends above them. With min-p the mass that counts is only that of the survivors.
    const double unneeded = (1.0 - params.top_p) * total / static_cast<double>(vocab);
    Gather(vocab, min_p > 0 ? min_p : static_cast<float>(unneeded * 0.999), scratch);
    if (min_p > 0) {
      total = 0;
      for (const float w : scratch.candidate_weights) total += static_cast<double>(w);
    }
  }
  if (params.top_p < 1.0) KeepNucleus(params.top_p, total, scratch);
  return DrawCandidate(uniform, scratch);
}

void AddLogprobs(std::span<const float> logits, float max, int top, Scratch& scratch,
                 GeneratedToken& token) {
  const double lse = static_cast<double>(max) + std::log(SumExp(logits, max));
  const auto logprob = [&](std::int32_t id) {
    const float x = logits[static_cast<std::size_t>(id)];
    return std::isnan(x) ? kMinusInf : static_cast<float>(static_cast<double>(x) - lse);
  };
  token.logprob = logprob(token.id);
  if (top <= 0) return;
  TopK(logits, static_cast<std::size_t>(top), scratch);
  std::sort(scratch.candidates.begin(), scratch.candidates.end(), Better{logits.data()});
  for (const std::int32_t id : scratch.candidates) token.top.push_back({id, logprob(id)});
}

}  // namespace

bool TakesLargest(const SamplingParams& params, const SampleContext& context) {
  return params.temperature <= 0.0 && params.logprobs < 0 && params.logit_bias.empty() &&
         !Penalises(params) && context.forbidden.empty();
}

GeneratedToken Sample(std::span<float> logits, const SamplingParams& params,
                      const SampleContext& context) {
  METATTN_CHECK(!logits.empty(), "a row of logits has at least one value");
  Scratch& scratch = ThreadScratch();
  Adjust(logits, params, context, scratch);
  scratch.maxima.resize(LogitChunks(logits.size()));
  float max = MaxPerChunk(logits, scratch.maxima);
  if (max == std::numeric_limits<float>::infinity()) {
    // An overflow in the model: the infinite ones share all of the probability.
    for (float& x : logits) x = x == max ? 0.0f : kMinusInf;
    max = MaxPerChunk(logits, scratch.maxima);
  }
  GeneratedToken token;
  if (max == kMinusInf) {  // nothing may be chosen
    if (params.logprobs >= 0) token.logprob = kMinusInf;
    return token;
  }
  if (params.temperature <= 0.0) {
    token.id = FirstOf(logits, scratch.maxima, max);
  } else {
    const double uniform = CounterUniform(context.seed, context.position);
    token.id = Draw(logits, max, params, uniform, scratch);
  }
  if (params.logprobs >= 0) AddLogprobs(logits, max, params.logprobs, scratch, token);
  return token;
}

}  // namespace metattn
