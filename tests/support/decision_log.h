// What a run recorded with --record-decisions, read without the engine's own reader.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace metattn::test {

// [tokens, layers, KV heads] of one request, of all ranks that recorded into the directory. A cell
// that is in no file is 255; of a position that was computed twice the last one counts.
struct RecordedDecisions {
  std::vector<std::uint8_t> decisions;
  std::vector<float> margins;
  bool operator==(const RecordedDecisions&) const = default;
};

RecordedDecisions ReadDecisions(const std::string& directory, int tokens,
                                std::uint64_t request = 1);

}  // namespace metattn::test
