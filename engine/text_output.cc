#include "engine/text_output.h"

#include <algorithm>
#include <utility>

namespace metattn {

StopMatcher::StopMatcher(const std::vector<std::string>& stops) {
  for (const std::string& stop : stops) {
    if (stop.empty()) continue;  // Validate refuses it; it would match everywhere
    Pattern pattern;
    pattern.text = stop;
    pattern.fallback.assign(stop.size(), 0);
    for (std::size_t i = 1; i < stop.size(); ++i) {  // Knuth-Morris-Pratt
      std::size_t border = pattern.fallback[i - 1];
      while (border > 0 && stop[i] != stop[border]) border = pattern.fallback[border - 1];
      pattern.fallback[i] = border + (stop[i] == stop[border] ? 1 : 0);
    }
    patterns_.push_back(std::move(pattern));
  }
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched_) return {};
  if (patterns_.empty()) return std::string(text);
  for (const char c : text) {
    held_.push_back(c);
    const Pattern* found = nullptr;
    for (Pattern& p : patterns_) {
      while (p.state > 0 && p.text[p.state] != c) p.state = p.fallback[p.state - 1];
      if (p.text[p.state] == c) ++p.state;
      if (p.state < p.text.size()) continue;
      if (found == nullptr || p.text.size() > found->text.size()) found = &p;
      p.state = p.fallback[p.state - 1];
    }
    if (found == nullptr) continue;
    matched_ = true;
    match_ = found->text;
    held_.resize(held_.size() - match_.size());  // a match is never partly given out
    return std::exchange(held_, {});
  }
  std::size_t keep = 0;
  for (const Pattern& p : patterns_) keep = std::max(keep, p.state);
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return certain;
}

std::string StopMatcher::Flush() { return std::exchange(held_, {}); }

std::string TextOutput::Finish() {
  std::string text = matcher_.Push(decoder_.Flush());
  text += matcher_.Flush();
  return text;
}

}  // namespace metattn
