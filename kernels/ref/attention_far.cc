// Far span of the listed rows: [sinks, far_end) span by span on the kSpanTokens grid, merged in
// span order into the row's partial.
#include <algorithm>

#include "kernels/check_args.h"
#include "kernels/ref/pages.h"
#include "kernels/ref/ref_kernels.h"
#include "kernels/ref/softmax.h"

namespace metattn::ref {
namespace {

// Merges the far span of one row and query head into `triple`.
void MergeFar(const FarFullArgs& args, std::int64_t row, int q_head, Triple* triple) {
  const int d = args.pages.head_dim, q_heads = args.pages.heads * args.group;
  const int sequence = args.rows.sequence.As<std::int32_t>()[row];
  const std::int64_t end = args.rows.far_end.As<std::int32_t>()[row];
  const float* q = args.q.As<float>() + (row * q_heads + q_head) * d;
  for (std::int64_t begin = args.rows.sinks; begin < end;) {
    const std::int64_t span_end = std::min((begin / kSpanTokens + 1) * kSpanTokens, end);
    Triple span(d);
    for (; begin < span_end; ++begin) {
      const Place place = Locate(args.rows, args.pages, sequence, q_head / args.group, begin);
      span.Add(Score(q, place.k, d, args.scale), place.v);
    }
    triple->Merge(span);
  }
}

}  // namespace

void RefKernels::FarFull(const FarFullArgs& args, Stream&) {
  CheckArgs(args);
  const int d = args.pages.head_dim, q_heads = args.pages.heads * args.group;
  for (int h = 0; h < args.pages.heads; ++h) {
    const auto* listed = args.list.rows.As<std::int32_t>() + h * args.list.capacity;
    const std::int32_t count = args.list.counts.As<std::int32_t>()[h];
    for (std::int32_t i = 0; i < count; ++i) {
      for (int hq = h * args.group; hq < (h + 1) * args.group; ++hq) {
        const std::int64_t index = std::int64_t{listed[i]} * q_heads + hq;
        float* o = args.partial.o.As<float>() + index * d;
        float* m = args.partial.m.As<float>() + index;
        float* l = args.partial.l.As<float>() + index;
        Triple triple = LoadTriple(o, m, l, d);
        MergeFar(args, listed[i], hq, &triple);
        StoreTriple(triple, o, m, l);
      }
    }
  }
}

}  // namespace metattn::ref
