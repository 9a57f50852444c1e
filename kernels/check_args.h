// Checks of op arguments that every backend makes before it touches memory: each view is there and
// its buffer is long enough for the shape, sizes are sane. A failure is our own bug
// (METATTN_CHECK).
//
// Thread safe, allocates nothing unless it fails. Cost: a few compares per op. Contents of device
// memory (positions, block ids, ...) are not read here.
#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/kernels.h"
#include "kernels/types.h"

namespace metattn {

// `count` values of `value_bytes` each lie inside the view's buffer. Nothing is needed for 0.
void CheckView(View view, std::int64_t count, int value_bytes, const char* name);

// activations: the backend's activation_dtype().
void CheckArgs(const EmbedArgs& args);
void CheckArgs(const NormArgs& args, DType activations = DType::kF32);
void CheckArgs(const LinearArgs& args, DType activations = DType::kF32);
void CheckArgs(const RopeAppendArgs& args);
void CheckArgs(const ForcedRouteArgs& args);
void CheckArgs(const CompactArgs& args);
void CheckArgs(const NearArgs& args);
void CheckArgs(const FarFullArgs& args);
void CheckArgs(const LinearAbsorbArgs& args);
void CheckArgs(const LinearOddsArgs& args);
void CheckArgs(const FarLinearArgs& args);
void CheckArgs(const ControlArgs& args, DType activations = DType::kF32);
void CheckArgs(const MixArgs& args);
void CheckArgs(const DispatchArgs& args);
void CheckArgs(const NormalizeArgs& args, DType activations = DType::kF32);
void CheckArgs(const SwiGluArgs& args, DType activations = DType::kF32);
void CheckArgs(const GatherArgs& args, DType activations = DType::kF32);
void CheckArgs(const ArgMaxArgs& args);

// What Pack demands of its parts.
void CheckParts(std::span<const MatrixPart> parts, std::int64_t cols);

}  // namespace metattn
