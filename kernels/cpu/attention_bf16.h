// Spans of a tile of query rows with bf16 products, f32 sums and softmax, on levels that have them.
//
// q and the probabilities are rounded to bf16, so a row's bits depend on whether its tile had
// enough query vectors to come here (kBf16Queries), but neither on its neighbours in the tile nor
// on the thread. Borrows plan, task and scratch. One caller per object, in a TileScope. No errors.
// Cost: see attention_bf16.cc. Scratch: Bytes().
#pragma once

#include "kernels/cpu/attention_tile.h"

namespace metattn::cpu::METATTN_ISA {

// With fewer query vectors a tile would be mostly padding.
inline constexpr int kBf16Queries = 16;
// Of a tile at most, unless a row has more: three blocks of 32; each page is read once for them.
inline constexpr int kBf16TileQueries = 96;

// Whether attention may round to bf16; the bits of a head's rows stay those of f32 otherwise.
METATTN_INLINE bool Bf16Attention(const OpContext& context, int head_dim, float scale) {
#if defined(__AVX512BF16__)
  return !context.deterministic && head_dim % 32 == 0 && scale > 0.0f;
#else
  static_cast<void>(context);
  static_cast<void>(head_dim);
  static_cast<void>(scale);
  return false;
#endif
}

#if defined(__AVX512BF16__)

// Where a span's partials go; arrays have room for the tile's queries rounded up to 16.
struct SpanSums {
  float* o;     // [Q, D]
  float* l;     // [Q, kLanes]: their sum is l
  float* m;     // [Q]; -inf: the query reads nothing here, its o is arbitrary
  float* t;     // [Q, kLanes]: their sum is sum p (score - m); null without statistics
  float* sink;  // [Q]: log-sum-exp of the sinks in the span; with statistics only
};

class Bf16Spans {
 public:
  Bf16Spans(const AttentionPlan& plan, const AttentionTask& task, std::byte* scratch);

  static std::size_t Bytes(const AttentionPlan& plan, const AttentionTask& task);

  // Rounds the queries of the tile that is worked on next: q of query i at `q(i)`, D floats.
  template <typename Query>
  METATTN_INLINE void Start(int queries, Query q) {
    queries_ = queries;
    for (int i = 0; i < queries; ++i) RoundQuery(q(i), i);
    for (int i = queries; i % kLanes != 0; ++i) RoundQuery(nullptr, i);
  }

  void Run(const Tile& tile, int span, const SpanSums& out);

 private:
  static constexpr int kChunk = 32;  // tokens that one product P V sums over
  static constexpr int kChunks = kSpanTokens / kChunk;
  static constexpr int kChunkFloats = 2 * 16 * 16;  // scores of 16 queries and a chunk

  // Tokens of the span that some row of the tile reads.
  struct Chunk {
    const std::uint32_t* k;
    const std::uint32_t* v;
    int index;  // in the span
  };

  void RoundQuery(const float* q, int query);
  void FindChunks(const Tile& tile, int span);
  const std::uint32_t* MaskValues(const std::uint32_t* v, std::uint32_t tokens, int index);
  template <int kRowTiles, bool kStats>
  void Block(int first, const SpanSums& out);
  template <int kRowTiles>
  void Scores(const std::uint16_t* q);
  void Sinks(int first, const SpanSums& out);
  template <bool kStats>
  void Softmax(int query, const SpanSums& out);
  template <int kRowTiles>
  void Values(float* o);

  const AttentionPlan& plan_;
  const AttentionTask& task_;
  const int dim_;
  int queries_ = 0, count_ = 0, sinks_ = 0;  // sinks_: of the span
  Chunk chunks_[kChunks];
  float* s_;              // [2][kChunks][2][16][16] scores; probabilities over the first halves
  std::uint16_t* q_;      // [Q, D]
  std::uint32_t* v_;      // [kChunks][16][D] chunks of V that are not read whole
  std::uint64_t* masks_;  // [rows][pages of a span]: which tokens a row reads
};

#endif  // __AVX512BF16__

}  // namespace metattn::cpu::METATTN_ISA
