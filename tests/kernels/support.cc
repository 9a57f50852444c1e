#include "tests/kernels/support.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numbers>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "kernels/cpu/isa.h"
#include "kernels/cuda_backend.h"

namespace metattn::testing {

std::string BackendParam::Name() const {
  std::string name = backend;
  if (!isa.empty()) name += "_" + isa;
  if (threads > 1) absl::StrAppend(&name, "_", threads, "threads");
  if (deterministic) name += "_deterministic";
  return name;
}

std::vector<BackendParam> Backends() {
  if (HasCudaBackend()) return {{"cuda", "", 1, false}, {"cuda", "", 1, true}};
  std::vector<BackendParam> backends = {{"ref", "", 1, false}};
  for (std::string_view isa : cpu::AvailableIsas()) {
    for (int threads : {1, 3}) backends.push_back({"cpu", std::string(isa), threads, false});
    if (RoundsToBf16(isa)) backends.push_back({"cpu", std::string(isa), 1, true});
  }
  return backends;
}

Rig::Rig(const BackendParam& param) : deterministic_(param.deterministic) {
  auto kernels = MakeKernels({.backend = param.backend,
                              .isa = param.isa,
                              .threads = param.threads,
                              .deterministic = param.deterministic,
                              .spin = false});
  METATTN_CHECK(kernels.ok(), kernels.status().ToString());
  kernels_ = std::move(*kernels);
  auto stream = kernels_->device().NewStream();
  METATTN_CHECK(stream.ok(), stream.status().ToString());
  stream_ = std::move(*stream);
}

double Rig::QueryRounding(float q) const {
  const auto rest = [](float x) { return x - Bf16ToF32(F32ToBf16(x)); };
  if (is_cuda()) return std::abs(rest(rest(q)));
  return rounds_factors() ? std::abs(rest(q)) : 0.0;
}

void Rig::Finish() {
  const absl::Status status = stream_->Synchronize();
  METATTN_CHECK(status.ok(), status.ToString());
}

std::vector<float> Rig::Rounded(std::vector<float> values) const {
  if (activation_dtype() == DType::kBF16) {
    for (float& value : values) value = Bf16ToF32(F32ToBf16(value));
  }
  return values;
}

View Rig::InActivations(const std::vector<float>& values) {
  if (activation_dtype() == DType::kF32) return In(values);
  std::vector<std::uint16_t> rounded;
  for (const float value : values) rounded.push_back(F32ToBf16(value));
  return In(rounded);
}

std::vector<float> Rig::OutActivations(View view, std::int64_t count) {
  if (activation_dtype() == DType::kF32) return Out<float>(view, count);
  std::vector<float> values;
  for (const std::uint16_t value : Out<std::uint16_t>(view, count)) {
    values.push_back(Bf16ToF32(value));
  }
  return values;
}

View Rig::Space(std::size_t bytes) {
  auto buffer = kernels_->device().Allocate(bytes);
  METATTN_CHECK(buffer.ok(), buffer.status().ToString());
  buffers_.push_back(std::make_unique<Buffer>(std::move(*buffer)));
  const View view{buffers_.back().get(), 0};
  const std::vector<std::byte> ones(bytes, std::byte{0xff});
  kernels_->device().CopyIn(ones.data(), view, bytes, *stream_);
  return view;
}

namespace {

// Close to a standard normal deviate and much cheaper: the sum of the four 16-bit parts of `bits`.
float NormalDeviate(std::uint64_t bits) {
  const std::uint64_t sum =
      (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
  return (static_cast<float>(sum) - 131070.0f) * (std::numbers::sqrt3_v<float> / 65536.0f);
}

}  // namespace

std::vector<float> Randoms(std::size_t count, std::uint64_t seed, float scale) {
  std::mt19937_64 engine(seed);
  std::vector<float> values(count);
  for (float& value : values) value = scale * NormalDeviate(engine());
  return values;
}

std::vector<std::byte> RandomRows(DType dtype, std::int64_t rows, std::int64_t cols,
                                  std::uint64_t seed) {
  std::mt19937_64 engine(seed);
  const DTypeInfo info = Info(dtype);
  std::vector<std::byte> bytes(static_cast<std::size_t>(rows * BytesFor(dtype, cols)));
  // f16 exponents around 2^-4: positive, finite, of one magnitude.
  auto put_scale = [&](std::size_t at) {
    const auto half = static_cast<std::uint16_t>(0x2c00u + (engine() & 0x3ffu));
    std::memcpy(bytes.data() + at, &half, 2);
  };
  for (std::size_t at = 0; at < bytes.size(); at += static_cast<std::size_t>(info.block_bytes)) {
    if (info.block_values > 1) {
      for (int i = 0; i < info.block_bytes; ++i) bytes[at + i] = static_cast<std::byte>(engine());
      put_scale(at);
      if (dtype == DType::kQ4_1) put_scale(at + 2);
      continue;
    }
    const float value = NormalDeviate(engine());
    const auto sign = static_cast<std::uint16_t>(value < 0 ? 0x8000u : 0u);
    const auto f16 = static_cast<std::uint16_t>(sign | (0x3800u + (engine() & 0x7ffu)));
    const std::uint16_t bf16 = F32ToBf16(value);
    const void* from = dtype == DType::kF32   ? static_cast<const void*>(&value)
                       : dtype == DType::kF16 ? static_cast<const void*>(&f16)
                                              : &bf16;
    std::memcpy(bytes.data() + at, from, static_cast<std::size_t>(info.block_bytes));
  }
  return bytes;
}

void ExpectWithin(std::span<const float> actual, std::span<const double> expected,
                  std::span<const double> bound, const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  ASSERT_EQ(actual.size(), bound.size()) << what;
  std::size_t worst = 0;
  double worst_ratio = -1;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (actual[i] == expected[i]) continue;  // covers infinities
    const double error = std::abs(actual[i] - expected[i]);
    const double ratio = std::isnan(error) ? HUGE_VAL : error / bound[i];
    if (ratio > worst_ratio) {
      worst = i;
      worst_ratio = ratio;
    }
  }
  if (worst_ratio <= 1) return;
  ADD_FAILURE() << what
                << absl::StrFormat(
                       ": element %d of %d: expected %.9g, actual %.9g, error %.3g, bound %.3g",
                       worst, actual.size(), expected[worst], actual[worst],
                       std::abs(actual[worst] - expected[worst]), bound[worst]);
}

void ExpectSame(std::span<const float> actual, std::span<const float> expected,
                const std::string& what) {
  ASSERT_EQ(actual.size(), expected.size()) << what;
  for (std::size_t i = 0; i < actual.size(); ++i) {
    if (std::memcmp(&actual[i], &expected[i], sizeof(float)) == 0) continue;
    ADD_FAILURE() << what
                  << absl::StrFormat(": element %d of %d: expected %.9g, actual %.9g, bit for bit",
                                     i, actual.size(), expected[i], actual[i]);
    return;
  }
}

std::vector<double> ToDouble(std::span<const float> values) {
  return std::vector<double>(values.begin(), values.end());
}

}  // namespace metattn::testing
