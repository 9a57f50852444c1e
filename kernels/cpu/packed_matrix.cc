#include "kernels/cpu/packed_matrix.h"

namespace metattn::cpu {

PackedMatrix::PackedMatrix(std::vector<Segment> segments, std::int64_t cols, int panel_rows,
                           WeightArena::Piece memory)
    : segments_(std::move(segments)),
      cols_(cols),
      panel_rows_(panel_rows),
      memory_(std::move(memory)) {
  for (const Segment& s : segments_) {
    rows_ += s.rows;
    panels_ += s.panels;
    bytes_ += s.panels * s.panel_bytes;
  }
}

}  // namespace metattn::cpu
