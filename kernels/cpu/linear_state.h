// What the ops of linear attention share: sizes and addresses, features of the keys an op adds, a
// part of a state on its way through an op.
//
// Borrows everything for one op. Thread safe as far as parts and heads do not overlap. No errors.
// Included only by sources compiled with -DMETATTN_ISA. Cost: see linear_attention.cc.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/feature_map.h"
#include "kernels/cpu/linear_plan.h"
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/page_products.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/row_products.h"
#include "kernels/cpu/tile_product.h"
#include "kernels/cpu/vec.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn::cpu::METATTN_ISA {

inline constexpr int kBf16Rows = 16;  // with fewer a tile would be mostly padding

// Addresses and sizes of one layer's linear mechanism.
struct Layer {
  Layer(const LinearShape& s, const OpContext& context)
      : shape(s),
        heads(s.pages.heads),
        group(s.group),
        d(s.pages.head_dim),
        padded(PaddedDim(d)),
        features(Features(s.map, d)) {
#if defined(__AVX512BF16__)
    bf16 = !context.deterministic && d % 32 == 0;
#else
    static_cast<void>(context);
#endif
  }

  // S, then z; S + features * d is z.
  float* State(const StatePath& path, int head) const {
    const std::int64_t slot = shape.rows.state_slot.As<std::int32_t>()[path.sequence];
    return shape.states.base.As<float>() +
           (slot * shape.states.slot_stride + head) * (StateBytes(features, d) / 4);
  }
  const std::uint32_t* Page(const KeyBlock& key, int head) const {
    const std::int64_t table = shape.rows.table_begin.As<std::int32_t>()[key.sequence];
    return PageAt(shape.pages, shape.rows.blocks.As<std::int32_t>()[table + key.block], head);
  }
  // V of a block's keys, dims [begin, end).
  PagePart Values(const KeyBlock& key, int head, int begin, int end) const {
    return {Page(key, head) + KeyWords(padded) + begin, 0, padded, key.first, key.end, end - begin};
  }
  std::int64_t PhiFloats() const { return std::int64_t{features} * kBlockTokens; }

  const LinearShape& shape;
  const int heads, group, d, padded, features;
  bool bf16 = false;  // products of many rows round their factors to bf16 (tile_product.h)
};

// What is known of the keys of an op: sums of their features, later z after each block, and the
// features themselves: as Add wants them if the op adds to states, and of blocks that rows read in
// part.
struct KeyStore {
  const Layer& layer;
  const LinearPlan& plan;
  float* sums;            // [keys, H, f]
  float* zeros;           // [f]: z of a state that holds nothing
  float* phi;             // [keys or tails, H, f, 64]
  std::uint16_t* narrow;  // [keys, H, f, 64] bf16, tokens that are not keys zero; or null
  bool tails_only;        // what phi has

  static std::int64_t Floats(const Layer& layer, const LinearPlan& plan, bool adds) {
    const std::int64_t phis = adds && !layer.bf16 ? plan.key_count : plan.tail_count;
    const std::int64_t halves = adds && layer.bf16 ? plan.key_count : 0;
    return layer.features + (plan.key_count * layer.features + phis * layer.PhiFloats() +
                             halves * layer.PhiFloats() / 2) *
                                layer.heads;
  }
  KeyStore(const Layer& l, const LinearPlan& p, float* memory, bool adds)
      : layer(l), plan(p), sums(memory), tails_only(!adds || l.bf16) {
    zeros = sums + std::int64_t{p.key_count} * l.heads * l.features;
    for (int f = 0; f < l.features; ++f) zeros[f] = 0.0f;
    phi = zeros + l.features;
    float* end = phi + (tails_only ? p.tail_count : p.key_count) * l.PhiFloats() * l.heads;
    narrow = adds && l.bf16 ? reinterpret_cast<std::uint16_t*>(end) : nullptr;
  }

  float* Sums(int key, int head) const {
    return sums + (std::int64_t{key} * layer.heads + head) * layer.features;
  }
  // Null: the features are not kept.
  float* Phi(int key, int head) const {
    const int at = tails_only ? plan.keys[key].tail : key;
    return at < 0 ? nullptr : phi + (std::int64_t{at} * layer.heads + head) * layer.PhiFloats();
  }
  std::uint16_t* Narrow(int key, int head) const {
    return narrow == nullptr
               ? nullptr
               : narrow + (std::int64_t{key} * layer.heads + head) * layer.PhiFloats();
  }
  // z of a path's state once it has taken `taken` blocks.
  const float* Z(const StatePath& path, int head, int taken) const {
    if (taken > 0) return Sums(path.first_key + taken - 1, head);
    return path.held == 0 ? zeros : layer.State(path, head) + layer.features * layer.d;
  }
};

// The linear ops' shared scratch.
METATTN_INLINE float* LinearScratch(OpContext& context, std::int64_t floats) {
  return reinterpret_cast<float*>(
      context.scratch.Shared(static_cast<std::size_t>(floats) * 4, SharedArea::kLinearAttention));
}

// Features and sums of the plan's keys, then z after each of the blocks that states take.
void MakeKeys(const KeyStore& store, OpContext& context);

// Where a row stands on its path.
struct Place {
  const StatePath* path;
  int taken;      // blocks before the row that the path takes
  int first_key;  // keys [first_key, end_key) of the block that follows are read too
  int end_key;
  int tail;  // that block in the plan's list
};

METATTN_INLINE Place Locate(const Layer& layer, const LinearPlan& plan, std::int32_t row) {
  const std::int32_t sequence = layer.shape.rows.sequence.As<std::int32_t>()[row];
  const std::int32_t end = layer.shape.rows.linear_end.As<std::int32_t>()[row];
  const StatePath& path = plan.paths[plan.path_of[sequence]];
  const int taken = end / kBlockTokens - path.held, tail = path.first_key + taken;
  const int end_key = end % kBlockTokens;
  return {&path, taken, end_key == 0 ? 0 : plan.keys[tail].first, end_key, tail};
}

// phi(q) z of a row at `place`: of the state and of the keys beside it.
float Weight(const KeyStore& store, const Place& place, int head, const float* phi_q);

// A part of the columns of one shard's state on its way through an op.
class StatePart {
 public:
  // `scratch` [f, D]. Works in the state's memory where it can: it holds something and needs no
  // padding.
  StatePart(const Layer& layer, const StatePath& path, int head, int begin, int end, float* scratch)
      : layer_(layer), memory_(layer.State(path, head)), head_(head), begin_(begin), end_(end) {
    in_place_ = layer.d == layer.padded && path.held > 0;
    s_ = in_place_ ? memory_ : scratch;
    if (in_place_) return;
    for (int f = 0; f < layer.features; ++f) {
      for (int i = begin; i < end; i += kLanes) {
        const int n = path.held == 0 ? 0 : Larger(0, Smaller(kLanes, layer.d - i));
        Store(s_ + f * layer.padded + i, LoadN(memory_ + f * layer.d + i, n));
      }
    }
  }

  // The columns of the part, D apart.
  Columns columns() const { return {s_ + begin_, layer_.padded, layer_.features, end_ - begin_}; }

  // Takes a block of the plan: S += phi(K)^T V.
  void Add(const KeyStore& store, int at) {
    const KeyBlock& key = store.plan.keys[at];
    const PagePart part = layer_.Values(key, head_, begin_, end_);
#if defined(__AVX512BF16__)
    if (layer_.bf16) {
      TileProduct({.a = store.Narrow(at, head_),
                   .a_stride = kBlockTokens,
                   .b = part.words,
                   .b_stride = layer_.padded,
                   .c = s_ + begin_,
                   .c_stride = layer_.padded,
                   .rows = layer_.features,
                   .columns = end_ - begin_,
                   .depth = kBlockTokens,
                   .add = true});
      return;
    }
#endif
    const float* phi = store.Phi(at, head_);
    for (int f = 0; f < layer_.features; f += kQueryBlock) {
      const int n = Smaller(kQueryBlock, layer_.features - f);
      kValue[n - 1](part, phi + f * kBlockTokens, s_ + f * layer_.padded + begin_);
    }
  }

  // Copies the columns to those of a whole state [f, D].
  void CopyTo(float* to) const {
    for (int f = 0; f < layer_.features; ++f) {
      for (int i = f * layer_.padded + begin_; i < f * layer_.padded + end_; i += kLanes) {
        Store(to + i, Load(s_ + i));
      }
    }
  }

  void Save() const {
    if (in_place_) return;
    for (int f = 0; f < layer_.features; ++f) {
      for (int i = begin_; i < end_; i += kLanes) {
        const int n = Larger(0, Smaller(kLanes, layer_.d - i));
        StoreN(memory_ + f * layer_.d + i, Load(s_ + f * layer_.padded + i), n);
      }
    }
  }

 private:
  const Layer& layer_;
  float* memory_;
  float* s_;
  int head_, begin_, end_;
  bool in_place_;
};

// Into how many parts of columns `shards` states are cut so that the threads have equal work, and
// where a part begins.
int StateParts(const Layer& layer, std::int64_t shards, int threads);
METATTN_INLINE int PartBegin(const Layer& layer, int part, int parts) {
  return layer.padded / 16 * part / parts * 16;
}

// Leaves z as it is after `taken` blocks in the state.
void CopyZ(const KeyStore& store, const StatePath& path, int head, int taken);

}  // namespace metattn::cpu::METATTN_ISA
