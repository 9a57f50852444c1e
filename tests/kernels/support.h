// What kernel tests share: the list of backends, host arrays in and out of device memory, random
// numbers, and a comparison with derived bounds that names the worst element.
//
// Not thread safe; failures are gtest failures; device trouble aborts the test by CHECK.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda_backend.h"
#include "kernels/kernels.h"
#include "tests/support/isa_levels.h"

namespace metattn::testing {

// Unit roundoff of f32 and of bf16 (half the distance between neighbours, relative).
inline constexpr double kF32 = 0x1p-24;
inline constexpr double kBf16 = 0x1p-8;
// Stated relative error of the backends' exp.
inline constexpr double kExp = 3e-7;

struct BackendParam {
  std::string backend;
  std::string isa;
  int threads = 1;
  bool deterministic = false;

  std::string Name() const;
};

// Where the cuda backend is linked in (the program that runs it in emulation) that one, also
// deterministic. Elsewhere
// ref, and every instruction set of cpu that this machine has, with one and with three threads;
// those that round factors to bf16 unless they must not, deterministic too.
std::vector<BackendParam> Backends();

// A backend under test with helpers that move vectors; owns every buffer it hands out.
class Rig {
 public:
  explicit Rig(const BackendParam& param);

  Kernels& kernels() { return *kernels_; }
  Stream& stream() { return *stream_; }
  bool is_ref() const { return kernels_->name() == "ref"; }
  // Whether the backend may round factors to bf16: everywhere; in Linear.
  bool rounds_factors() const { return RoundsToBf16(kernels_->isa()) && !deterministic_; }
  bool rounds_in_linear() const { return rounds_factors() || (is_cuda() && !deterministic_); }
  // And phi(k), phi(q) and S in linear attention.
  bool rounds_features() const { return rounds_factors() || is_cuda(); }
  // How far a query of this size may be from what phi(q) is made of: bf16, or the sum of two.
  double QueryRounding(float q) const;
  // And queries and softmax weights of heads of d dimensions, in Near and FarFull.
  bool rounds_queries(int d) const { return is_cuda() || (rounds_factors() && d % 32 == 0); }

  template <typename T>
  View In(const std::vector<T>& values) {
    const View view = Space(values.size() * sizeof(T));
    kernels_->device().CopyIn(values.data(), view, values.size() * sizeof(T), *stream_);
    return view;
  }
  // What the backend takes and gives as activations: f32, or bf16 that f32 values are rounded to.
  View InActivations(const std::vector<float>& values);
  View Activations(std::int64_t count) {
    return Space(static_cast<std::size_t>(BytesFor(activation_dtype(), count)));
  }
  std::vector<float> OutActivations(View view, std::int64_t count);
  std::vector<float> Rounded(std::vector<float> values) const;
  // Relative error of that rounding.
  double activation_rounding() const { return activation_dtype() == DType::kBF16 ? kBf16 : 0; }
  DType activation_dtype() const { return kernels_->activation_dtype(); }
  // Device memory filled with 0xff bytes (NaN as f32 and bf16), so that a place nobody wrote shows.
  View Space(std::size_t bytes);
  View Floats(std::int64_t count) { return Space(static_cast<std::size_t>(count) * 4); }
  // Waits for what was enqueued; what failed on the device aborts the test.
  void Finish();

  template <typename T>
  std::vector<T> Out(View view, std::int64_t count) {
    std::vector<T> values(static_cast<std::size_t>(count));
    kernels_->device().CopyOut(view, values.data(), values.size() * sizeof(T), *stream_);
    Finish();
    return values;
  }

 private:
  bool is_cuda() const { return kernels_->name() == "cuda"; }

  bool deterministic_;
  std::unique_ptr<Kernels> kernels_;
  std::unique_ptr<Stream> stream_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
};

// Deviates close to normal (none beyond 3.5), times `scale`; the same for the same seed everywhere.
std::vector<float> Randoms(std::size_t count, std::uint64_t seed, float scale = 1.0f);

// Rows in a file's layout: random blocks of `dtype` with sane scales, [rows, cols].
std::vector<std::byte> RandomRows(DType dtype, std::int64_t rows, std::int64_t cols,
                                  std::uint64_t seed);

// All shapes, or every third where a run repeats another: in further orders of emulated threads,
// and under ThreadSanitizer, which makes kernels ten times slower.
template <typename Shape>
std::vector<Shape> ForThisRun(std::vector<Shape> shapes) {
#ifdef __SANITIZE_THREAD__
  const bool all = false;
#else
  const bool all = !HasCudaBackend() || std::getenv("EMU_ORDER") == nullptr;
#endif
  if (all) return shapes;
  std::vector<Shape> some;
  for (std::size_t i = 1; i < shapes.size(); i += 3) some.push_back(std::move(shapes[i]));
  return some;
}

// |actual - expected| <= bound, element by element; a failure prints the worst one.
void ExpectWithin(std::span<const float> actual, std::span<const double> expected,
                  std::span<const double> bound, const std::string& what);
// Bit for bit.
void ExpectSame(std::span<const float> actual, std::span<const float> expected,
                const std::string& what);

std::vector<double> ToDouble(std::span<const float> values);

}  // namespace metattn::testing
