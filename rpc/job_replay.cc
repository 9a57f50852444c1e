#include "rpc/job_replay.h"

#include <algorithm>
#include <utility>

namespace metattn {

JobReplay::JobReplay(const std::vector<OutputChunk>& stored) {
  for (const OutputChunk& chunk : stored) {
    tokens_.insert(tokens_.end(), chunk.tokens.begin(), chunk.tokens.end());
    text_ += chunk.text;
  }
  active_ = !tokens_.empty() || !text_.empty();
}

JobReplay::Outcome JobReplay::Add(OutputChunk chunk, bool last) {
  const std::size_t left = tokens_.size() - std::min(tokens_seen_, tokens_.size());
  const std::size_t common = std::min(chunk.tokens.size(), left);
  bool same = std::equal(chunk.tokens.begin(), chunk.tokens.begin() + common,
                         tokens_.begin() + std::min(tokens_seen_, tokens_.size()));
  // Tokens beyond the stored ones, when the text still lags.
  rest_.tokens.insert(rest_.tokens.end(), chunk.tokens.begin() + common, chunk.tokens.end());
  tokens_seen_ += chunk.tokens.size();
  text_seen_ += chunk.text;
  const std::size_t text_common = std::min(text_seen_.size(), text_.size());
  same = same && text_seen_.compare(0, text_common, text_, 0, text_common) == 0;
  run_.push_back(std::move(chunk));
  const bool passed = tokens_seen_ >= tokens_.size() && text_seen_.size() >= text_.size();
  if (same && passed) {
    rest_.offset = static_cast<std::int64_t>(tokens_.size());
    rest_.text = text_seen_.substr(text_.size());
    active_ = false;
    return Outcome::kPassed;
  }
  if (same && !last) return Outcome::kRepeats;
  active_ = false;
  return Outcome::kDiffers;
}

}  // namespace metattn
