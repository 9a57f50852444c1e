// The op table of one level.
#include "kernels/cpu/op_table.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vec.h"

namespace metattn::cpu::METATTN_ISA {

#define METATTN_TEXT_(x) #x
#define METATTN_TEXT(x) METATTN_TEXT_(x)

const OpTable& Table() {
  static constexpr OpTable table = {
      .name = METATTN_TEXT(METATTN_ISA),
      .panel_rows = kLanes,
      .page_bytes = PageBytes,
      .embed = Embed,
      .norm = Norm,
      .linear = Linear,
      .rope_append = RopeAppend,
      .forced_route = ForcedRoute,
      .compact = Compact,
      .near = Near,
      .far_full = FarFull,
      .linear_absorb = LinearAbsorb,
      .linear_odds = LinearOdds,
      .far_linear = FarLinear,
      .near_and_odds = NearAndOdds,
      .far = Far,
      .control = Control,
      .mix = Mix,
      .dispatch = Dispatch,
      .normalize = Normalize,
      .swiglu = SwiGlu,
      .gather = Gather,
      .argmax = ArgMax,
  };
  return table;
}

}  // namespace metattn::cpu::METATTN_ISA
