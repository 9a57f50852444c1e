// Rows that another rank serves: into a request, out of it, their partials back. A few rows of some
// hundred floats each: not worth handing to other threads.
#include <cstdint>
#include <cstring>

#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"
#include "kernels/dispatch_ops.h"

namespace metattn::cpu::METATTN_ISA {
namespace {

// Moves rows from the list to the request.
void Pick(const DispatchArgs& args, const BucketViews& bucket) {
  auto* listed = args.list.rows.As<std::int32_t>() + args.head * args.list.capacity;
  auto* count = args.list.counts.As<std::int32_t>() + args.head;
  const auto* helped = args.helped.As<std::uint8_t>();
  auto* rows = bucket.rows.As<std::int32_t>();
  std::int32_t kept = 0, sent = 0;
  for (std::int32_t i = 0; i < *count; ++i) {
    const std::int32_t row = listed[i];
    const bool leaves = helped[row] != 0 && sent < args.bucket.capacity;
    (leaves ? rows[sent++] : listed[kept++]) = row;
  }
  *count = kept;
  *bucket.count.As<std::int32_t>() = sent;
}

// The triples of one row's query group.
struct Group {
  float *o, *m, *l;

  Group(const Partial& partial, std::int64_t index, int d)
      : Group(partial.o, partial.m, partial.l, index, d) {}
  Group(View o_at, View m_at, View l_at, std::int64_t index, int d)
      : o(o_at.As<float>() + index * d), m(m_at.As<float>() + index), l(l_at.As<float>() + index) {}
};

void Empty(const Group& to, int group, int d) {
  for (int g = 0; g < group; ++g) to.m[g] = kMinusInfinity, to.l[g] = 0.0f;
  std::memset(to.o, 0, sizeof(float) * group * d);
}

void Copy(const Group& from, const Group& to, int group, int d) {
  std::memcpy(to.m, from.m, sizeof(float) * group);
  std::memcpy(to.l, from.l, sizeof(float) * group);
  std::memcpy(to.o, from.o, sizeof(float) * group * d);
}

void Merge(const Group& from, const Group& to, int group, int d) {
  for (int g = 0; g < group; ++g) {
    if (from.l[g] == 0.0f) continue;
    const float largest = from.m[g] > to.m[g] ? from.m[g] : to.m[g];
    const float keep = ExpOne(to.m[g] - largest), add = ExpOne(from.m[g] - largest);
    float* o = to.o + g * d;
    for (int i = 0; i < d; i += kLanes) {
      const int n = Smaller(kLanes, d - i);
      const F32v added = Mul(LoadN(from.o + g * d + i, n), Set(add));
      StoreN(o + i, Fma(LoadN(o + i, n), Set(keep), added), n);
    }
    to.l[g] = to.l[g] * keep + from.l[g] * add;
    to.m[g] = largest;
  }
}

}  // namespace

void Dispatch(const DispatchArgs& args, OpContext&) {
  const BucketViews bucket(args);
  if (args.step == DispatchStep::kSend) Pick(args, bucket);
  const int group = args.bucket.group, d = args.bucket.head_dim;
  const std::size_t q_bytes = sizeof(float) * group * d;
  const std::int32_t count = *bucket.count.As<std::int32_t>();
  for (std::int32_t i = 0; i < count; ++i) {
    const std::int64_t row = bucket.rows.As<std::int32_t>()[i];
    const std::int64_t index = (row * args.heads + args.head) * group,
                       sent = std::int64_t{i} * group;
    float* q = args.q.As<float>() + index * d;
    float* sent_q = bucket.q.As<float>() + sent * d;
    const Group of_row(args.partial, index, d), answer(bucket.o, bucket.m, bucket.l, sent, d);
    switch (args.step) {
      case DispatchStep::kSend:
        std::memcpy(sent_q, q, q_bytes);
        break;
      case DispatchStep::kServe:
        std::memcpy(q, sent_q, q_bytes);
        Empty(of_row, group, d);
        break;
      case DispatchStep::kReturn:
        Copy(of_row, answer, group, d);
        break;
      case DispatchStep::kMerge:
        Merge(answer, of_row, group, d);
        break;
    }
  }
}

}  // namespace metattn::cpu::METATTN_ISA
