// CUDA's device functions that need no other thread, for the emulation: arithmetic, bits, loads
// with cache hints, atomics. Only what kernels use is here; a missing name is a compile error.
//
// Ownership: none. Thread safety: atomics are real ones. Errors: none. Cost: as in C++.
#pragma once

#include <cuda_bf16.h>
#include <vector_types.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emu {

// What the .ftz instructions do to arguments and results.
inline float FlushSubnormal(float x) {
  return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0F, x) : x;
}

// Replaces *p by Change(*p), returns the old value.
template <typename T, typename Change>
T AtomicChange(T* p, const Change& change) {
  std::atomic_ref<T> atomic(*p);
  T old = atomic.load(std::memory_order_relaxed);
  while (!atomic.compare_exchange_weak(old, change(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace emu

using std::max;
using std::min;

inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }

// Never fused with an addition. x86-64 without FMA, which kernels are compiled for, fuses nothing.
inline float __fmul_rn(float a, float b) { return a * b; }

template <typename T>
T __ldg(const T* p) {
  return *p;
}
template <typename T>
T __ldcg(const T* p) {
  return *p;
}
template <typename T>
T __ldcs(const T* p) {
  return *p;
}
template <typename T>
void __stcs(T* p, T value) {
  *p = value;
}

inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
  return __float2bfloat16(std::fma(__bfloat162float(a), __bfloat162float(b), __bfloat162float(c)));
}
inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

// Orders for other blocks, which the emulation runs one after the other; for the own block a fence
// without a barrier orders nothing that TSan should know of.
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T atomicAdd(T* p, T value) {
  return emu::AtomicChange(p, [&](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* p, T value) {
  return emu::AtomicChange(p, [&](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* p, T value) {
  return emu::AtomicChange(p, [&](T old) { return std::min(old, value); });
}
template <typename T>
T atomicOr(T* p, T value) {
  return emu::AtomicChange(p, [&](T old) { return static_cast<T>(old | value); });
}
template <typename T>
T atomicExch(T* p, T value) {
  return emu::AtomicChange(p, [&](T) { return value; });
}
template <typename T>
T atomicCAS(T* p, T expected, T value) {
  return emu::AtomicChange(p, [&](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return emu::AtomicChange(p, [&](unsigned old) { return old >= limit ? 0 : old + 1; });
}
