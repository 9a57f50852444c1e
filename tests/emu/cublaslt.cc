// The part of cuBLASLt's API that the engine uses: D = alpha op(A) B + beta C (+ bias) with A and B
// in bf16, C and D in f32 or bf16 (then without a bias), the rest in f32, A transposed, column
// major.
//
// A product is work of its stream, in graphs too; descriptors are read when it is enqueued. An
// algorithm holds only for what the heuristic was asked about: shapes, strides, epilogue, and the
// alignments that were promised. What cuBLASLt answers with an error is one here; what it answers
// with wrong numbers or a fault (memory that is not the device's or ends early, an algorithm of
// another product, a promise not kept) is printed and aborts. Stricter than cuBLASLt: there is no
// algorithm where rows of A and B are not multiples of 16 bytes, and each needs a MiB of workspace
// per started 256 columns of D. Sums are taken in f32, in an order of the emulation's own.

#include <cublasLt.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "tests/emu/collectives.h"
#include "tests/emu/runtime_state.h"

namespace emu {
namespace {

struct Handle {
  int device = 0;
};

struct Layout {
  cudaDataType_t type = CUDA_R_32F;
  std::uint64_t rows = 0, cols = 0;
  std::int64_t stride = 0;
};

struct Product {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const float* bias = nullptr;
};

struct Preference {
  std::size_t workspace = 0;
  std::uint32_t alignment[4] = {256, 256, 256, 256};  // of A, B, C, D
};

// What an algorithm was chosen for; lies in cublasLtMatmulAlgo_t.
struct Algorithm {
  std::uint32_t magic = 0x4c74;
  std::uint32_t alignment[4] = {};
  std::uint32_t bias_alignment = 0;  // 0: no bias
  std::uint64_t problem = 0;
  std::size_t workspace = 0;
};
static_assert(sizeof(Algorithm) <= sizeof(cublasLtMatmulAlgo_t));

[[noreturn]] void Misuse(const std::string& what) { Fail(("cublasLtMatmul: " + what).c_str()); }

// The frame of every function; a failure that a test asked for comes as what is nearest to it.
template <typename Body>
cublasStatus_t Blas(const char* function, const Body& body) {
  if (InHostFunction()) return CUBLAS_STATUS_EXECUTION_FAILED;
  ReportFaults();
  Runtime& runtime = Runtime::Get();
  const std::lock_guard lock(runtime.mutex);
  switch (runtime.Enter(function)) {
    case cudaSuccess:
      break;
    case cudaErrorNotSupported:
      return CUBLAS_STATUS_NOT_SUPPORTED;
    case cudaErrorMemoryAllocation:
      return CUBLAS_STATUS_ALLOC_FAILED;
    default:
      return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  const cublasStatus_t status = body(runtime);
  runtime.Settle();
  return status;
}

// The caller's handle is the address of our object; the map tells live ones from others.
template <typename T, typename Opaque>
cublasStatus_t New(Runtime& runtime, Opaque** handle, T value) {
  if (handle == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  auto object = std::make_shared<T>(value);
  *handle = reinterpret_cast<Opaque*>(object.get());
  runtime.blas[object.get()] = object;
  return CUBLAS_STATUS_SUCCESS;
}

template <typename T>
T* Find(const Runtime& runtime, const void* handle) {
  const auto found = runtime.blas.find(handle);
  return found == runtime.blas.end() ? nullptr : static_cast<T*>(found->second.get());
}

cublasStatus_t Delete(const char* function, const void* handle) {
  return Blas(function, [&](Runtime& runtime) {
    return runtime.blas.erase(handle) > 0 ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
  });
}

template <typename T>
cublasStatus_t Take(T& place, const void* value, std::size_t bytes) {
  if (bytes != sizeof(T) || value == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&place, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

std::uint32_t AlignmentOf(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p) | 256;
  return static_cast<std::uint32_t>(address & (~address + 1));
}

// A product's descriptors, resolved.
struct Problem {
  Product product;
  Layout a, b, c, d;

  std::uint64_t Hash() const {
    std::uint64_t hash = 1469598103934665603U;
    const auto mix = [&](std::uint64_t value) { hash = (hash ^ value) * 1099511628211U; };
    for (const Layout* l : {&a, &b, &c, &d}) {
      mix(l->type), mix(l->rows), mix(l->cols), mix(static_cast<std::uint64_t>(l->stride));
    }
    mix(product.epilogue);
    return hash;
  }
  std::uint64_t depth() const { return a.rows; }
  bool Emulated() const {
    return product.compute == CUBLAS_COMPUTE_32F && product.scale == CUDA_R_32F &&
           product.a == CUBLAS_OP_T && product.b == CUBLAS_OP_N && a.type == CUDA_R_16BF &&
           b.type == CUDA_R_16BF && c.type == d.type &&
           (d.type == CUDA_R_32F || d.type == CUDA_R_16BF) &&
           (product.epilogue == CUBLASLT_EPILOGUE_DEFAULT ||
            (product.epilogue == CUBLASLT_EPILOGUE_BIAS && d.type == CUDA_R_32F));
  }
  bool Fits() const {
    const bool shapes = a.rows == b.rows && d.rows == a.cols && d.cols == b.cols &&
                        c.rows == d.rows && c.cols == d.cols;
    const auto strided = [](const Layout& l) {
      return l.rows > 0 && l.cols > 0 && static_cast<std::uint64_t>(l.stride) >= l.rows;
    };
    return shapes && strided(a) && strided(b) && strided(c) && strided(d);
  }
  std::size_t Workspace() const { return (d.cols + 255) / 256 << 20; }
};

struct Handles {
  const void *product, *a, *b, *c, *d;
};

bool Resolve(const Runtime& runtime, const Handles& handles, Problem* out) {
  const auto* product = Find<Product>(runtime, handles.product);
  const Layout* layouts[] = {Find<Layout>(runtime, handles.a), Find<Layout>(runtime, handles.b),
                             Find<Layout>(runtime, handles.c), Find<Layout>(runtime, handles.d)};
  if (product == nullptr) return false;
  if (std::any_of(layouts, layouts + 4, [](const Layout* l) { return l == nullptr; })) return false;
  *out = {*product, *layouts[0], *layouts[1], *layouts[2], *layouts[3]};
  return true;
}

void CheckMemory(const Runtime& runtime, const char* name, const void* data, const Layout& layout) {
  const std::size_t size = layout.type == CUDA_R_16BF ? 2 : 4;
  const std::size_t bytes =
      ((layout.cols - 1) * static_cast<std::size_t>(layout.stride) + layout.rows) * size;
  const Allocation* allocation = FindAllocation(runtime, data, bytes);
  if (allocation == nullptr || allocation->type != cudaMemoryTypeDevice) {
    Misuse(std::string(name) + ": " + std::to_string(bytes) +
           " bytes that are not in one allocation of the device");
  }
}

struct Places {
  const void *a, *b, *c;
  void* d;
};

void Check(const Runtime& runtime, const Problem& problem, const Places& places,
           const Algorithm& algorithm) {
  if (algorithm.magic != Algorithm().magic || algorithm.problem != problem.Hash()) {
    Misuse("the algorithm was chosen for another product");
  }
  const void* data[] = {places.a, places.b, places.c, places.d};
  const Layout* layouts[] = {&problem.a, &problem.b, &problem.c, &problem.d};
  const char* names[] = {"A", "B", "C", "D"};
  for (int i = 0; i < 4; ++i) {
    CheckMemory(runtime, names[i], data[i], *layouts[i]);
    if (AlignmentOf(data[i]) >= algorithm.alignment[i]) continue;
    Misuse(std::string(names[i]) + " is less aligned than the algorithm was promised");
  }
  if (problem.product.epilogue != CUBLASLT_EPILOGUE_BIAS) return;
  CheckMemory(runtime, "bias", problem.product.bias,
              {CUDA_R_32F, problem.d.rows, 1, static_cast<std::int64_t>(problem.d.rows)});
  if (AlignmentOf(problem.product.bias) < algorithm.bias_alignment) {
    Misuse("the bias is less aligned than the one that the heuristic saw");
  }
}

float FromBf16(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

float Dot(const std::uint16_t* a, const std::uint16_t* b, std::uint64_t n) {
  float sums[8] = {};
  for (std::uint64_t k = 0; k < n; ++k) sums[k % 8] += FromBf16(a[k]) * FromBf16(b[k]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

std::uint16_t ToBf16(float value) {  // to nearest even; of finite values
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A value of C or D.
float Read(const void* data, const Layout& layout, std::uint64_t index) {
  if (layout.type == CUDA_R_32F) return static_cast<const float*>(data)[index];
  return FromBf16(static_cast<const std::uint16_t*>(data)[index]);
}

void Write(void* data, const Layout& layout, std::uint64_t index, float value) {
  if (layout.type == CUDA_R_32F) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<std::uint16_t*>(data)[index] = ToBf16(value);
  }
}

void Multiply(const Problem& problem, const Places& places, float alpha, float beta) {
  const auto column = [](const Layout& layout, std::uint64_t n) {
    return n * static_cast<std::uint64_t>(layout.stride);
  };
  const auto* a = static_cast<const std::uint16_t*>(places.a);
  const auto* b = static_cast<const std::uint16_t*>(places.b);
  const float* bias =
      problem.product.epilogue == CUBLASLT_EPILOGUE_BIAS ? problem.product.bias : nullptr;
  for (std::uint64_t n = 0; n < problem.d.cols; ++n) {
    for (std::uint64_t m = 0; m < problem.d.rows; ++m) {
      float sum = alpha * Dot(a + column(problem.a, m), b + column(problem.b, n), problem.depth());
      if (beta != 0) sum += beta * Read(places.c, problem.c, column(problem.c, n) + m);
      if (bias != nullptr) sum += bias[m];
      Write(places.d, problem.d, column(problem.d, n) + m, sum);
    }
  }
}

cublasStatus_t Choose(const Problem& problem, const Preference& preference,
                      cublasLtMatmulHeuristicResult_t* result) {
  if (!problem.Fits()) return CUBLAS_STATUS_INVALID_VALUE;
  const bool rows_aligned = problem.a.stride % 8 == 0 && problem.b.stride % 8 == 0;
  if (!problem.Emulated() || !rows_aligned || problem.Workspace() > preference.workspace) {
    return CUBLAS_STATUS_NOT_SUPPORTED;
  }
  Algorithm algorithm;
  std::copy_n(preference.alignment, 4, algorithm.alignment);
  if (problem.product.epilogue == CUBLASLT_EPILOGUE_BIAS) {
    algorithm.bias_alignment = AlignmentOf(problem.product.bias);
  }
  algorithm.problem = problem.Hash();
  algorithm.workspace = problem.Workspace();
  *result = {};
  std::memcpy(&result->algo, &algorithm, sizeof algorithm);
  result->workspaceSize = algorithm.workspace;
  result->state = CUBLAS_STATUS_SUCCESS;
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace
}  // namespace emu

using emu::Blas;

extern "C" {

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_ALLOC_FAILED:
      return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
    default:
      return "CUBLAS_STATUS_EXECUTION_FAILED";
  }
}

const char* cublasLtGetStatusString(cublasStatus_t) { return "the emulated cuBLASLt"; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return Blas("cublasLtCreate", [&](emu::Runtime& runtime) {
    return emu::New(runtime, handle, emu::Handle{emu::CurrentDevice()});
  });
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return emu::Delete("cublasLtDestroy", handle);
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld) {
  return Blas("cublasLtMatrixLayoutCreate", [&](emu::Runtime& runtime) {
    return emu::New(runtime, layout, emu::Layout{type, rows, cols, ld});
  });
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return emu::Delete("cublasLtMatrixLayoutDestroy", layout);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* product, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return Blas("cublasLtMatmulDescCreate", [&](emu::Runtime& runtime) {
    emu::Product made;
    made.compute = compute, made.scale = scale;
    return emu::New(runtime, product, made);
  });
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t product) {
  return emu::Delete("cublasLtMatmulDescDestroy", product);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  return Blas("cublasLtMatmulDescSetAttribute", [&](emu::Runtime& runtime) {
    auto* product = emu::Find<emu::Product>(runtime, handle);
    if (product == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
      case CUBLASLT_MATMUL_DESC_TRANSA:
        return emu::Take(product->a, value, bytes);
      case CUBLASLT_MATMUL_DESC_TRANSB:
        return emu::Take(product->b, value, bytes);
      case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return emu::Take(product->epilogue, value, bytes);
      case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return emu::Take(product->bias, value, bytes);
      default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
  });
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Blas("cublasLtMatmulPreferenceCreate", [&](emu::Runtime& runtime) {
    return emu::New(runtime, preference, emu::Preference{});
  });
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return emu::Delete("cublasLtMatmulPreferenceDestroy", preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  return Blas("cublasLtMatmulPreferenceSetAttribute", [&](emu::Runtime& runtime) {
    auto* preference = emu::Find<emu::Preference>(runtime, handle);
    if (preference == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
      case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return emu::Take(preference->workspace, value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return emu::Take(preference->alignment[0], value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return emu::Take(preference->alignment[1], value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return emu::Take(preference->alignment[2], value, bytes);
      case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return emu::Take(preference->alignment[3], value, bytes);
      default:
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
  });
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[],
                                              int* found) {
  return Blas("cublasLtMatmulAlgoGetHeuristic", [&](emu::Runtime& runtime) {
    const auto* asked = emu::Find<emu::Preference>(runtime, preference);
    emu::Problem problem;
    if (emu::Find<emu::Handle>(runtime, handle) == nullptr || asked == nullptr || wanted <= 0 ||
        !emu::Resolve(runtime, {product, a, b, c, d}, &problem)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    const cublasStatus_t status = emu::Choose(problem, *asked, results);
    *found = status == CUBLAS_STATUS_SUCCESS ? 1 : 0;
    return status;
  });
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t product,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
  return Blas("cublasLtMatmul", [&](emu::Runtime& runtime) {
    const auto* owner = emu::Find<emu::Handle>(runtime, handle);
    emu::Problem problem;
    if (owner == nullptr || owner->device != emu::CurrentDevice() || algo == nullptr ||
        !emu::Resolve(runtime, {product, a_layout, b_layout, c_layout, d_layout}, &problem)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    emu::Algorithm algorithm;
    std::memcpy(static_cast<void*>(&algorithm), algo, sizeof algorithm);
    const emu::Places places = {a, b, c, d};
    emu::Check(runtime, problem, places, algorithm);
    if (workspace_bytes < algorithm.workspace) return CUBLAS_STATUS_INVALID_VALUE;
    emu::CheckMemory(
        runtime, "workspace", workspace,
        {CUDA_R_32F, workspace_bytes / 4, 1, static_cast<std::int64_t>(workspace_bytes / 4)});
    const float factors[] = {*static_cast<const float*>(alpha), *static_cast<const float*>(beta)};
    const cudaError_t status =
        runtime.Enqueue(stream, [problem, places, alpha = factors[0], beta = factors[1]] {
          emu::Multiply(problem, places, alpha, beta);
          return true;
        });
    return status == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
  });
}

}  // extern "C"
