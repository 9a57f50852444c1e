// Rows that another rank serves: into a request, out of it, their partials back.
#include <algorithm>
#include <cstdint>

#include "kernels/check_args.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/ref/softmax.h"

namespace metattn::ref {
namespace {

// Moves rows from the list to the request.
void Pick(const DispatchArgs& args, const BucketViews& bucket) {
  auto* listed = args.list.rows.As<std::int32_t>() + args.head * args.list.capacity;
  std::int32_t& count = args.list.counts.As<std::int32_t>()[args.head];
  const auto* helped = args.helped.As<std::uint8_t>();
  auto* rows = bucket.rows.As<std::int32_t>();
  std::int32_t kept = 0, sent = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const bool leaves = helped[listed[i]] != 0 && sent < args.bucket.capacity;
    const std::int32_t row = listed[i];
    (leaves ? rows[sent++] : listed[kept++]) = row;
  }
  count = kept;
  *bucket.count.As<std::int32_t>() = sent;
}

}  // namespace

void RefKernels::Dispatch(const DispatchArgs& args, Stream&) {
  CheckArgs(args);
  const BucketViews bucket(args);
  if (args.step == DispatchStep::kSend) Pick(args, bucket);
  const int group = args.bucket.group, d = args.bucket.head_dim;
  const std::int64_t queries = std::int64_t{*bucket.count.As<std::int32_t>()} * group;
  for (std::int64_t i = 0; i < queries; ++i) {
    const std::int64_t row = bucket.rows.As<std::int32_t>()[i / group];
    const std::int64_t index = (row * args.heads + args.head) * group + i % group;
    float* q = args.q.As<float>() + index * d;
    float* sent_q = bucket.q.As<float>() + i * d;
    float* o = args.partial.o.As<float>() + index * d;
    float* m = args.partial.m.As<float>() + index;
    float* l = args.partial.l.As<float>() + index;
    float* answer_o = bucket.o.As<float>() + i * d;
    float* answer_m = bucket.m.As<float>() + i;
    float* answer_l = bucket.l.As<float>() + i;
    if (args.step == DispatchStep::kSend) {
      std::copy_n(q, d, sent_q);
    } else if (args.step == DispatchStep::kServe) {
      std::copy_n(sent_q, d, q);
      StoreTriple(Triple(d), o, m, l);
    } else if (args.step == DispatchStep::kReturn) {
      std::copy_n(o, d, answer_o);
      *answer_m = *m;
      *answer_l = *l;
    } else {
      Triple whole = LoadTriple(o, m, l, d);
      whole.Merge(LoadTriple(answer_o, answer_m, answer_l, d));
      StoreTriple(whole, o, m, l);
    }
  }
}

}  // namespace metattn::ref
