// How the work of one attention op is cut: tiles of query rows that read the same pages, and units
// of a tile's spans that threads take one by one.
//
// Pure integer arithmetic on the step's row descriptions, compiled once for all instruction sets.
// Ownership: a plan points into memory of the calling thread that the next MakePlan on that thread
// reuses. Thread safety: read by many, made by one. Errors: none. Cost: linear in the rows listed.
// Results never depend on the cut: a tile gives every row the same operations in the same order,
// and spans are merged in span order whoever computed them.
#pragma once

#include <cstdint>

#include "kernels/kernels.h"

namespace metattn::cpu {

// Query vectors (rows x group) of a tile on the f32 kernels. 48 keep the tile's queries, scores and
// sums in the first two cache levels and use each page 48 times.
inline constexpr int kTileQueries = 48;

// Positions one row reads: [0, sinks_end) and [begin, end).
struct RowRange {
  std::int32_t row, sinks_end, begin, end;
};

// Consecutive ranges of one sequence and KV head. Its spans are [0, sink_spans) and, from
// window_span on, the rest of `spans`.
struct Tile {
  std::int32_t head, sequence;
  std::int32_t first_range, rows;
  std::int32_t sink_spans, window_span, spans;
  std::int32_t units;              // threads that share it
  std::int64_t first_partial = 0;  // units > 1: where its span partials start, in query vectors

  std::int32_t SpanAt(std::int32_t i) const {
    return i < sink_spans ? i : window_span + i - sink_spans;
  }
};

// Spans first .. end - 1 (indices for SpanAt) of a tile.
struct Unit {
  std::int32_t tile, first, end;
};

struct AttentionPlan {
  const RowRange* ranges = nullptr;
  const Tile* tiles = nullptr;
  const Unit* units = nullptr;
  std::int32_t tile_count = 0, unit_count = 0, max_rows = 0;
  std::int64_t partials = 0;  // span partials kept apart, in query vectors
};

struct CutOptions {
  int group = 1;
  int threads = 1;
  int tile_queries = kTileQueries;  // query vectors of a tile at most, unless a row has more
};

// Near partials of all rows.
AttentionPlan PlanNear(const AttentionRows& rows, int heads, const CutOptions& options);
// Far spans of the listed rows.
AttentionPlan PlanFar(const AttentionRows& rows, const WorkList& list, int heads,
                      const CutOptions& options);

}  // namespace metattn::cpu
