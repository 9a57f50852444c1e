// Arguments of the ops that let another rank read the far pages of some rows (design section 6).
//
// A helper has copies of far pages of one KV head of its home. Per layer and step the home sends it
// a bucket of rows and gets their far partials back. Which rows decided for full attention only the
// devices know, and two ranks must agree on the size of a message: so buckets have a fixed
// capacity, say themselves how many rows they hold, and a row that finds no room stays in the
// home's list.
//   home                                          helper
//   kSend: rows leave the list for the request
//                    -- Exchange: the request -->
//                                                 kServe: q and empty partials of these rows
//                                                 FarFull over RequestList, the copied pages
//                                                 kReturn: their partials to the answer
//                    <-- Exchange: the answer --
//   kMerge: the answer's partials into the rows'
// Both ranks run the same step, so a row number means the same row on both. Notation as in
// kernels.h; C capacity.
#pragma once

#include <cstdint>

#include "kernels/attention_types.h"
#include "kernels/device.h"

namespace metattn {

// What both messages of one (KV head, helper) look like, in bytes from their first.
//   request  how many rows i32; their numbers [C] i32, ascending; q [C, g, d] f32
//   answer   in the order of the request: o [C, g, d] f32, m [C, g] f32, l [C, g] f32
struct BucketShape {
  std::int64_t capacity = 0;  // C: rows
  int group = 1;              // g
  int head_dim = 0;           // d

  constexpr std::int64_t values() const { return capacity * group * head_dim; }
  constexpr std::int64_t rows_at() const { return 64; }
  constexpr std::int64_t q_at() const { return rows_at() + (capacity * 4 + 63) / 64 * 64; }
  constexpr std::int64_t request_bytes() const { return q_at() + values() * 4; }
  constexpr std::int64_t m_at() const { return values() * 4; }
  constexpr std::int64_t l_at() const { return m_at() + capacity * group * 4; }
  constexpr std::int64_t answer_bytes() const { return l_at() + capacity * group * 4; }
};

enum class DispatchStep : std::uint8_t { kSend, kServe, kReturn, kMerge };

struct DispatchArgs {
  DispatchStep step = DispatchStep::kSend;
  BucketShape bucket;
  std::int64_t tokens = 0;  // T
  int heads = 1;            // H of list, q and partial: the home's KV heads; on the helper 1
  int head = 0;             // which of them
  // kSend, [T] u8: rows that the helper may serve, because it has all their far pages, are not 0.
  View helped;
  WorkList list;    // kSend, in and out: of `head`, the others are left alone
  View q;           // [T, H*g, d] f32: in of kSend, out of kServe
  Partial partial;  // out of kServe (empty), in of kReturn, in and out of kMerge
  View request;     // out of kSend, else in
  View answer;      // out of kReturn, in of kMerge
};

// The parts of both messages; those of an absent one are absent.
struct BucketViews {
  explicit BucketViews(const DispatchArgs& args) {
    const auto part = [](View message, std::int64_t at) {
      if (message) message.offset_bytes += static_cast<std::size_t>(at);
      return message;
    };
    const BucketShape& shape = args.bucket;
    count = args.request, rows = part(args.request, shape.rows_at());
    q = part(args.request, shape.q_at());
    o = args.answer, m = part(args.answer, shape.m_at()), l = part(args.answer, shape.l_at());
  }

  View count, rows, q;  // [1] i32, [C] i32, [C, g, d] f32
  View o, m, l;         // [C, g, d], [C, g], [C, g] f32
};

// The rows of a request as FarFull wants them: a list of one KV head.
inline WorkList RequestList(const BucketShape& bucket, View request) {
  const BucketViews views({.bucket = bucket, .request = request});
  return {.rows = views.rows, .counts = views.count, .capacity = bucket.capacity};
}

}  // namespace metattn
