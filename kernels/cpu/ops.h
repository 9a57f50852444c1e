// Declarations of the ops that every instruction-set level compiles; see op_table.h for meanings.
//
// Included only by sources compiled with -DMETATTN_ISA. Ownership, thread safety, errors, cost: as
// op_table.h.
#pragma once

#include "kernels/cpu/op_table.h"

namespace metattn::cpu::METATTN_ISA {

const OpTable& Table();

void Embed(const PackedMatrix& table, const EmbedArgs& args, OpContext& context);
void Norm(const NormArgs& args, OpContext& context);
void Linear(const PackedMatrix& weight, const LinearArgs& args, OpContext& context);
void SwiGlu(const SwiGluArgs& args, OpContext& context);
void Gather(const GatherArgs& args, OpContext& context);
void ArgMax(const ArgMaxArgs& args, OpContext& context);

// rope_append.cc, route.cc, attention_near.cc, attention_far.cc, control.cc, mix.cc, dispatch.cc
std::int64_t PageBytes(int head_dim);
void RopeAppend(const RopeAppendArgs& args, OpContext& context);
void ForcedRoute(const ForcedRouteArgs& args, OpContext& context);
void Compact(const CompactArgs& args, OpContext& context);
void Near(const NearArgs& args, OpContext& context);
void FarFull(const FarFullArgs& args, OpContext& context);
void Control(const ControlArgs& args, OpContext& context);
void Mix(const MixArgs& args, OpContext& context);
void Dispatch(const DispatchArgs& args, OpContext& context);
void Normalize(const NormalizeArgs& args, OpContext& context);

// linear_attention.cc, linear_odds.cc
void LinearAbsorb(const LinearAbsorbArgs& args, OpContext& context);
void LinearOdds(const LinearOddsArgs& args, OpContext& context);
void FarLinear(const FarLinearArgs& args, OpContext& context);

// side_by_side.cc
void NearAndOdds(const NearArgs& near, const LinearOddsArgs& odds, OpContext& context);
void Far(const FarFullArgs& full, const FarLinearArgs& linear, OpContext& context);

}  // namespace metattn::cpu::METATTN_ISA
