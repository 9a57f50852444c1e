#include "engine/model/gathered_head.h"

#include <algorithm>
#include <limits>

namespace metattn {

std::vector<float> SideBySide(std::span<const Slice> slices, std::span<const float> gathered) {
  const std::int64_t vocab = slices.back().vocab_end;
  const std::int64_t rows = std::ssize(gathered) / vocab;
  std::vector<float> logits(gathered.size());
  const float* from = gathered.data();
  for (const Slice& s : slices) {
    const std::int64_t width = s.vocab_end - s.vocab_begin;
    for (std::int64_t row = 0; row < rows; ++row, from += width) {
      std::copy_n(from, width, logits.data() + row * vocab + s.vocab_begin);
    }
  }
  return logits;
}

std::vector<std::int32_t> BestOfRanks(std::span<const Slice> slices,
                                      std::span<const Largest> gathered) {
  const std::size_t rows = gathered.size() / slices.size();
  std::vector<std::int32_t> best(rows, 0);
  for (std::size_t row = 0; row < rows; ++row) {
    float value = -std::numeric_limits<float>::infinity();
    for (std::size_t rank = 0; rank < slices.size(); ++rank) {
      const Largest& theirs = gathered[rank * rows + row];
      if (!(theirs.value > value)) continue;
      value = theirs.value;
      best[row] = static_cast<std::int32_t>(slices[rank].vocab_begin) + theirs.index;
    }
  }
  return best;
}

}  // namespace metattn
