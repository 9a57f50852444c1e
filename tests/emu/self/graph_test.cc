// Capture with fork and join, replay under every mask, and each way to spoil a capture.

#include <functional>
#include <thread>

#include "tests/emu/self/support.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

constexpr cudaStreamCaptureMode kThreadLocal = cudaStreamCaptureModeThreadLocal;

class EmuGraph : public EmuTest {
 protected:
  void SetUp() override { Make(0); }
  void TearDown() override { Destroy(); }

  void Make(unsigned mask) {
    Reset(WithMask(mask));
    for (cudaStream_t* stream : {&main_, &side_}) {
      EXPECT_CUDA(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking));
    }
    for (cudaEvent_t* event : {&fork_, &join_}) {
      EXPECT_CUDA(cudaEventCreateWithFlags(event, cudaEventDisableTiming));
    }
    EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&x_), sizeof(float)));
    EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&y_), sizeof(float)));
    EXPECT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host_), 2 * sizeof(float)));
    EXPECT_CUDA(cudaMemset(x_, 0, sizeof(float)));
    EXPECT_CUDA(cudaMemset(y_, 0, sizeof(float)));
  }

  void Destroy() {
    for (const cudaStream_t stream : {main_, side_}) EXPECT_CUDA(cudaStreamDestroy(stream));
    for (const cudaEvent_t event : {fork_, join_}) EXPECT_CUDA(cudaEventDestroy(event));
    for (float* data : {x_, y_}) EXPECT_CUDA(cudaFree(data));
    EXPECT_CUDA(cudaFreeHost(host_));
  }

  // x += 1; on the side y = 2 * x; then y to the host.
  void Enqueue(bool join) {
    EXPECT_CUDA(Affine(x_, 1, 1, 1, main_));
    EXPECT_CUDA(cudaEventRecord(fork_, main_));
    EXPECT_CUDA(cudaStreamWaitEvent(side_, fork_, 0));
    EXPECT_CUDA(cudaMemcpyAsync(y_, x_, sizeof(float), cudaMemcpyDeviceToDevice, side_));
    EXPECT_CUDA(Affine(y_, 1, 2, 0, side_));
    if (!join) return;
    EXPECT_CUDA(cudaEventRecord(join_, side_));
    EXPECT_CUDA(cudaStreamWaitEvent(main_, join_, 0));
    EXPECT_CUDA(cudaMemcpyAsync(host_, y_, sizeof(float), cudaMemcpyDeviceToHost, main_));
  }

  cudaGraphExec_t Captured() {
    EXPECT_CUDA(cudaStreamBeginCapture(main_, kThreadLocal));
    Enqueue(true);
    cudaGraph_t graph = nullptr;
    EXPECT_CUDA(cudaStreamEndCapture(main_, &graph));
    std::size_t nodes = 0;
    EXPECT_CUDA(cudaGraphGetNodes(graph, nullptr, &nodes));
    EXPECT_EQ(nodes, 4U);
    cudaGraphExec_t executable = nullptr;
    EXPECT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
    EXPECT_CUDA(cudaGraphDestroy(graph));
    return executable;
  }

  // Begins a capture, does `spoil`, which must give `error`; the capture must then end with `end`.
  void ExpectSpoilt(const std::function<cudaError_t()>& spoil, cudaError_t error, cudaError_t end) {
    EXPECT_CUDA(cudaStreamBeginCapture(main_, kThreadLocal));
    EXPECT_CUDA(Affine(x_, 1, 1, 1, main_));
    EXPECT_EQ(spoil(), error);
    cudaGraph_t graph = nullptr;
    EXPECT_EQ(cudaStreamEndCapture(main_, &graph), end);
    if (graph != nullptr) {
      EXPECT_CUDA(cudaGraphDestroy(graph));
    }
    cudaStreamCaptureStatus status;
    EXPECT_CUDA(cudaStreamIsCapturing(main_, &status));
    EXPECT_EQ(status, cudaStreamCaptureStatusNone);
  }

  cudaStream_t main_ = nullptr, side_ = nullptr;
  cudaEvent_t fork_ = nullptr, join_ = nullptr;
  float *x_ = nullptr, *y_ = nullptr, *host_ = nullptr;
};

TEST_F(EmuGraph, ReplaysForkAndJoinUnderEveryMask) {
  for (unsigned mask = 0; mask < 4; ++mask) {
    Destroy();
    Make(mask);
    const cudaGraphExec_t graph = Captured();
    EXPECT_EQ(KernelsRun(), 0) << "capturing runs nothing";
    ResetCounters();
    for (int i = 0; i < 3; ++i) EXPECT_CUDA(cudaGraphLaunch(graph, main_));
    EXPECT_CUDA(cudaStreamSynchronize(main_));
    EXPECT_EQ(host_[0], 6) << "mask " << mask;
    EXPECT_EQ(KernelsRun(), 6);
    EXPECT_EQ(Calls("cudaGraphLaunch"), 3);
    EXPECT_EQ(Calls("cudaLaunchKernel"), 0);
    EXPECT_EQ(BytesCopied(cudaMemcpyDeviceToHost), 3 * 4);
    EXPECT_EQ(BytesCopied(cudaMemcpyDeviceToDevice), 3 * 4);
    EXPECT_CUDA(cudaGraphExecDestroy(graph));
  }
}

TEST_F(EmuGraph, LaunchesOfOneGraphNeverOverlap) {
  for (unsigned mask = 0; mask < 4; ++mask) {
    Destroy();
    Make(mask);
    const cudaGraphExec_t graph = Captured();
    EXPECT_CUDA(cudaGraphLaunch(graph, main_));
    EXPECT_CUDA(cudaGraphLaunch(graph, side_));
    EXPECT_CUDA(cudaGraphExecDestroy(graph));  // what was launched still runs
    EXPECT_CUDA(cudaStreamSynchronize(side_));
    EXPECT_EQ(host_[0], 4) << "mask " << mask;
  }
}

TEST_F(EmuGraph, LaunchesOnTheLegacyStreamRunAtOnce) {
  const cudaGraphExec_t graph = Captured();
  EXPECT_CUDA(cudaGraphLaunch(graph, main_));
  EXPECT_CUDA(cudaGraphLaunch(graph, nullptr));
  EXPECT_EQ(host_[0], 4);
  EXPECT_CUDA(cudaGraphExecDestroy(graph));
}

TEST_F(EmuGraph, AThreadInRelaxedModeDisturbsNobodysCapture) {
  EXPECT_CUDA(cudaEventRecord(join_, main_));
  EXPECT_CUDA(cudaStreamBeginCapture(main_, cudaStreamCaptureModeGlobal));
  std::thread([&] {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    EXPECT_CUDA(cudaThreadExchangeStreamCaptureMode(&mode));
    EXPECT_EQ(mode, cudaStreamCaptureModeGlobal);
    EXPECT_CUDA(cudaEventQuery(join_));
  }).join();
  cudaGraph_t graph = nullptr;
  EXPECT_CUDA(cudaStreamEndCapture(main_, &graph));
  EXPECT_CUDA(cudaGraphDestroy(graph));
}

TEST_F(EmuGraph, AForgottenWaitInTheCaptureShowsUnderOneMask) {
  for (unsigned mask = 0; mask < 4; ++mask) {
    Destroy();
    Make(mask);
    EXPECT_CUDA(cudaStreamBeginCapture(main_, kThreadLocal));
    EXPECT_CUDA(cudaEventRecord(fork_, main_));  // bug: before the work that the side needs
    EXPECT_CUDA(Affine(x_, 1, 1, 1, main_));
    EXPECT_CUDA(cudaStreamWaitEvent(side_, fork_, 0));
    EXPECT_CUDA(cudaMemcpyAsync(y_, x_, sizeof(float), cudaMemcpyDeviceToDevice, side_));
    EXPECT_CUDA(cudaEventRecord(join_, side_));
    EXPECT_CUDA(cudaStreamWaitEvent(main_, join_, 0));
    EXPECT_CUDA(cudaMemcpyAsync(host_, y_, sizeof(float), cudaMemcpyDeviceToHost, main_));
    cudaGraph_t graph = nullptr;
    EXPECT_CUDA(cudaStreamEndCapture(main_, &graph));
    cudaGraphExec_t executable = nullptr;
    EXPECT_CUDA(cudaGraphInstantiateWithFlags(&executable, graph, 0));
    EXPECT_CUDA(cudaGraphUpload(executable, main_));
    EXPECT_CUDA(cudaGraphLaunch(executable, main_));
    EXPECT_CUDA(cudaStreamSynchronize(main_));
    EXPECT_EQ(host_[0], mask == 2 ? 0 : 1) << "mask " << mask;
    EXPECT_CUDA(cudaGraphDestroy(graph));
    EXPECT_CUDA(cudaGraphExecDestroy(executable));
  }
}

TEST_F(EmuGraph, ACaptureTakesNoGraphAndNoOtherCapture) {
  const cudaGraphExec_t graph = Captured();
  ExpectSpoilt([&] { return cudaGraphLaunch(graph, main_); }, cudaErrorStreamCaptureUnsupported,
               cudaSuccess);
  EXPECT_CUDA(cudaGraphExecDestroy(graph));
  EXPECT_CUDA(cudaStreamBeginCapture(side_, kThreadLocal));
  EXPECT_CUDA(cudaEventRecord(join_, side_));
  ExpectSpoilt([&] { return cudaStreamWaitEvent(main_, join_, 0); }, cudaErrorStreamCaptureMerge,
               cudaSuccess);
  EXPECT_EQ(cudaStreamWaitEvent(nullptr, join_, 0), cudaErrorStreamCaptureImplicit);
  cudaStreamCaptureStatus status;
  EXPECT_CUDA(cudaStreamIsCapturing(side_, &status));
  EXPECT_EQ(status, cudaStreamCaptureStatusActive);
  EXPECT_EQ(cudaStreamSynchronize(side_), cudaErrorStreamCaptureUnsupported);
  EXPECT_CUDA(cudaStreamIsCapturing(side_, &status));
  EXPECT_EQ(status, cudaStreamCaptureStatusInvalidated);
  cudaGraph_t none = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(side_, &none), cudaErrorStreamCaptureInvalidated);
}

TEST_F(EmuGraph, SideStreamsMustJoin) {
  ExpectSpoilt(
      [&] {
        Enqueue(false);
        return cudaSuccess;
      },
      cudaSuccess, cudaErrorStreamCaptureUnjoined);
}

TEST_F(EmuGraph, SynchronisingOrAllocatingSpoilsACapture) {
  constexpr cudaError_t kUnsupported = cudaErrorStreamCaptureUnsupported;
  constexpr cudaError_t kInvalidated = cudaErrorStreamCaptureInvalidated;
  void* data = nullptr;
  float pageable = 0;
  ExpectSpoilt([&] { return cudaStreamSynchronize(main_); }, kUnsupported, kInvalidated);
  ExpectSpoilt([&] { return cudaStreamQuery(main_); }, kUnsupported, kInvalidated);
  ExpectSpoilt([&] { return cudaDeviceSynchronize(); }, kUnsupported, kInvalidated);
  ExpectSpoilt([&] { return cudaMalloc(&data, 4); }, kUnsupported, kInvalidated);
  ExpectSpoilt([&] { return cudaMallocHost(&data, 4); }, kUnsupported, kInvalidated);
  ExpectSpoilt([&] { return cudaFree(x_); }, kUnsupported, kInvalidated);
  ExpectSpoilt([&] { return cudaMemcpy(x_, &pageable, 4, cudaMemcpyHostToDevice); }, kUnsupported,
               kInvalidated);
  ExpectSpoilt([&] { return cudaMemcpyAsync(x_, &pageable, 4, cudaMemcpyHostToDevice, main_); },
               kUnsupported, kInvalidated);
  ExpectSpoilt([&] { return cudaMallocAsync(&data, 4, main_); }, kUnsupported, cudaSuccess);
  ExpectSpoilt([&] { return cudaFreeAsync(x_, main_); }, kUnsupported, cudaSuccess);
}

TEST_F(EmuGraph, EventsDoNotCrossACapture) {
  EXPECT_CUDA(cudaEventRecord(join_, side_));  // outside
  ExpectSpoilt([&] { return cudaStreamWaitEvent(main_, join_, 0); },
               cudaErrorStreamCaptureIsolation, cudaErrorStreamCaptureInvalidated);
  ExpectSpoilt(
      [&] {
        EXPECT_CUDA(cudaEventRecord(fork_, main_));
        return cudaEventQuery(fork_);
      },
      cudaErrorCapturedEvent, cudaErrorStreamCaptureInvalidated);
  EXPECT_EQ(cudaStreamWaitEvent(side_, fork_, 0), cudaErrorCapturedEvent);  // that capture is over
}

TEST_F(EmuGraph, ACaptureEndsWhereItBegan) {
  ExpectSpoilt(
      [&] {
        EXPECT_CUDA(cudaEventRecord(fork_, main_));
        EXPECT_CUDA(cudaStreamWaitEvent(side_, fork_, 0));
        cudaGraph_t graph = nullptr;
        return cudaStreamEndCapture(side_, &graph);
      },
      cudaErrorStreamCaptureUnmatched, cudaSuccess);
  ExpectSpoilt(
      [&] {
        cudaError_t error = cudaSuccess;
        std::thread([&] {
          cudaGraph_t graph = nullptr;
          error = cudaStreamEndCapture(main_, &graph);
        }).join();
        return error;
      },
      cudaErrorStreamCaptureWrongThread, cudaSuccess);
  ExpectSpoilt([&] { return cudaStreamBeginCapture(main_, kThreadLocal); }, cudaErrorIllegalState,
               cudaSuccess);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(main_, &graph), cudaErrorIllegalState);
  EXPECT_EQ(cudaStreamBeginCapture(nullptr, kThreadLocal), cudaErrorStreamCaptureUnsupported);
}

TEST_F(EmuGraph, TheLegacyStreamMayNotMeetACaptureOfABlockingStream) {
  cudaStream_t blocking;
  EXPECT_CUDA(cudaStreamCreate(&blocking));
  EXPECT_CUDA(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
  EXPECT_EQ(cudaMemset(x_, 0, 4), cudaErrorStreamCaptureImplicit);
  cudaGraph_t graph = nullptr;
  EXPECT_EQ(cudaStreamEndCapture(blocking, &graph), cudaErrorStreamCaptureInvalidated);
  EXPECT_CUDA(cudaStreamDestroy(blocking));
}

TEST_F(EmuGraph, ExternalEventsAreRecordedByEveryLaunch) {
  cudaEvent_t before = nullptr, after = nullptr;
  EXPECT_CUDA(cudaEventCreate(&before));
  EXPECT_CUDA(cudaEventCreate(&after));
  EXPECT_CUDA(cudaStreamBeginCapture(main_, kThreadLocal));
  EXPECT_CUDA(cudaEventRecordWithFlags(before, main_, cudaEventRecordExternal));
  EXPECT_CUDA(Affine(x_, 1, 1, 1, main_));
  EXPECT_CUDA(cudaEventRecordWithFlags(after, main_, cudaEventRecordExternal));
  cudaGraph_t graph = nullptr;
  EXPECT_CUDA(cudaStreamEndCapture(main_, &graph));
  cudaGraphExec_t executable = nullptr;
  EXPECT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  EXPECT_CUDA(cudaGraphDestroy(graph));
  float last = -1, milliseconds = 0;
  for (int launch = 0; launch < 2; ++launch) {
    EXPECT_CUDA(cudaGraphLaunch(executable, main_));
    EXPECT_EQ(cudaEventQuery(after), cudaErrorNotReady) << "of this launch, not of the last";
    EXPECT_CUDA(cudaStreamSynchronize(main_));
    EXPECT_CUDA(cudaEventElapsedTime(&milliseconds, before, after));
    EXPECT_GE(milliseconds, 0);
    EXPECT_NE(milliseconds, last) << "two launches of equal length to the nanosecond";
    last = milliseconds;
  }
  EXPECT_CUDA(cudaEventDestroy(after));
  EXPECT_EQ(cudaGraphLaunch(executable, main_), cudaErrorInvalidResourceHandle);
  EXPECT_CUDA(cudaStreamSynchronize(main_));
  EXPECT_CUDA(cudaEventDestroy(before));
  EXPECT_CUDA(cudaGraphExecDestroy(executable));
}

}  // namespace
}  // namespace emu::self
