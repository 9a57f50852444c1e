// Streams, events and host functions under every eagerness mask, and what a mask makes visible.

#include <atomic>
#include <thread>

#include "tests/emu/runtime_state.h"
#include "tests/emu/self/support.h"
#include "tests/emu/self/test_kernels.h"

namespace emu::self {
namespace {

constexpr int kCount = 300;

// Pinned host memory and a device array of kCount floats, and some streams with an event each.
class Scene {
 public:
  explicit Scene(std::size_t streams) : streams_(streams), events_(streams) {
    for (auto& stream : streams_) {
      EXPECT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    }
    for (auto& event : events_) {
      EXPECT_CUDA(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    }
    EXPECT_CUDA(cudaMalloc(reinterpret_cast<void**>(&device), kBytes));
    EXPECT_CUDA(cudaMallocHost(reinterpret_cast<void**>(&host), kBytes));
    for (int i = 0; i < kCount; ++i) host[i] = static_cast<float>(i);
  }
  Scene(const Scene&) = delete;
  Scene& operator=(const Scene&) = delete;
  ~Scene() {
    for (const auto& event : events_) EXPECT_CUDA(cudaEventDestroy(event));
    for (const auto& stream : streams_) EXPECT_CUDA(cudaStreamDestroy(stream));
    EXPECT_CUDA(cudaFree(device));
    EXPECT_CUDA(cudaFreeHost(host));
  }

  static constexpr std::size_t kBytes = kCount * sizeof(float);
  cudaStream_t stream(std::size_t i) const { return streams_[i]; }

  void In(std::size_t i) {
    EXPECT_CUDA(cudaMemcpyAsync(device, host, kBytes, cudaMemcpyHostToDevice, streams_[i]));
  }
  void Out(std::size_t i) {
    EXPECT_CUDA(cudaMemcpyAsync(host, device, kBytes, cudaMemcpyDeviceToHost, streams_[i]));
  }
  void Change(std::size_t i, float factor, float addend) {
    EXPECT_CUDA(Affine(device, kCount, factor, addend, streams_[i]));
  }
  void Follow(std::size_t before, std::size_t after) {
    EXPECT_CUDA(cudaEventRecord(events_[before], streams_[before]));
    EXPECT_CUDA(cudaStreamWaitEvent(streams_[after], events_[before], 0));
  }
  // Whether the host has i * factor + addend everywhere.
  bool Holds(float factor, float addend) const {
    for (int i = 0; i < kCount; ++i) {
      if (host[i] != static_cast<float>(i) * factor + addend) return false;
    }
    return true;
  }

  float* device = nullptr;
  float* host = nullptr;

 private:
  std::vector<cudaStream_t> streams_;
  std::vector<cudaEvent_t> events_;
};

class EmuStream : public EmuTest {};

// copy in -> *2 +1 -> *3 +5 -> copy out, each on a stream of its own; `forgotten` leaves out the
// wait between that stream and the next.
bool ChainIsRight(unsigned mask, std::size_t forgotten) {
  Reset(WithMask(mask));
  Scene scene(4);
  const auto follow = [&](std::size_t before) {
    if (before != forgotten) scene.Follow(before, before + 1);
  };
  scene.In(0);
  follow(0);
  scene.Change(1, 2, 1);
  follow(1);
  scene.Change(2, 3, 5);
  follow(2);
  scene.Out(3);
  EXPECT_CUDA(cudaStreamSynchronize(scene.stream(3)));
  const bool right = scene.Holds(6, 8);
  EXPECT_CUDA(cudaDeviceSynchronize());
  return right;
}

TEST_F(EmuStream, ChainOverFourStreamsIsRightUnderEveryMask) {
  for (unsigned mask = 0; mask < 16; ++mask) EXPECT_TRUE(ChainIsRight(mask, 99)) << "mask " << mask;
}

TEST_F(EmuStream, EachForgottenWaitOfTheChainShowsUnderSomeMask) {
  for (std::size_t forgotten = 0; forgotten < 3; ++forgotten) {
    for (unsigned mask = 0; mask < 16; ++mask) {
      // Right by luck only where all streams up to the forgotten wait run ahead by themselves.
      const unsigned before = (2U << forgotten) - 1;
      EXPECT_EQ(ChainIsRight(mask, forgotten), (mask & before) == before)
          << "mask " << mask << ", forgotten after stream " << forgotten;
    }
  }
}

TEST_F(EmuStream, LazyStreamsRunOnlyWhenWaitedFor) {
  Scene scene(1);
  scene.In(0);
  scene.Change(0, 1, 1);
  scene.Out(0);
  EXPECT_TRUE(scene.Holds(1, 0));
  EXPECT_EQ(KernelsRun(), 0);
  EXPECT_EQ(cudaStreamQuery(scene.stream(0)), cudaErrorNotReady);
  EXPECT_CUDA(cudaStreamSynchronize(scene.stream(0)));
  EXPECT_EQ(KernelsRun(), 1);
  EXPECT_TRUE(scene.Holds(1, 1));
  EXPECT_CUDA(cudaStreamQuery(scene.stream(0)));
}

TEST_F(EmuStream, EagerStreamsRunAtOnce) {
  Reset(WithMask(1));
  Scene scene(1);
  scene.In(0);
  scene.Change(0, 1, 1);
  scene.Out(0);
  EXPECT_TRUE(scene.Holds(1, 1));
}

TEST_F(EmuStream, PollingComesToAnEnd) {
  Scene scene(2);
  cudaEvent_t event;
  EXPECT_CUDA(cudaEventCreate(&event));
  EXPECT_CUDA(cudaEventQuery(event));  // never recorded counts as done
  scene.In(0);
  scene.Change(0, 1, 1);
  scene.Follow(0, 1);
  scene.Out(1);
  EXPECT_CUDA(cudaEventRecord(event, scene.stream(1)));
  int polls = 1;
  for (; cudaEventQuery(event) == cudaErrorNotReady; ++polls) ASSERT_LT(polls, 100);
  EXPECT_GT(polls, 1);
  EXPECT_TRUE(scene.Holds(1, 1));
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);  // not ready is no error
  EXPECT_CUDA(cudaEventDestroy(event));
}

TEST_F(EmuStream, EventsMeasureTimeWhereAskedTo) {
  Scene scene(1);
  cudaEvent_t start, end, untimed;
  EXPECT_CUDA(cudaEventCreate(&start));
  EXPECT_CUDA(cudaEventCreate(&end));
  EXPECT_CUDA(cudaEventCreateWithFlags(&untimed, cudaEventDisableTiming));
  float milliseconds = -1;
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorInvalidResourceHandle);
  EXPECT_CUDA(cudaEventRecord(start, scene.stream(0)));
  scene.In(0);
  EXPECT_CUDA(cudaEventRecord(end, scene.stream(0)));
  EXPECT_CUDA(cudaEventRecord(untimed, scene.stream(0)));
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, end), cudaErrorNotReady);
  EXPECT_CUDA(cudaEventSynchronize(end));
  EXPECT_CUDA(cudaEventElapsedTime(&milliseconds, start, end));
  EXPECT_GE(milliseconds, 0);
  EXPECT_EQ(cudaEventElapsedTime(&milliseconds, start, untimed), cudaErrorInvalidResourceHandle);
  for (const cudaEvent_t event : {start, end, untimed}) EXPECT_CUDA(cudaEventDestroy(event));
  EXPECT_EQ(cudaEventRecord(start, scene.stream(0)), cudaErrorInvalidResourceHandle);
}

TEST_F(EmuStream, AnEventStandsForItsLastRecord) {
  Scene scene(2);
  scene.In(0);
  scene.Follow(0, 1);     // stream 1 waits for the copy in
  scene.Change(0, 2, 0);  // not for this
  scene.Out(1);
  EXPECT_CUDA(cudaStreamSynchronize(scene.stream(1)));
  EXPECT_TRUE(scene.Holds(1, 0));
  scene.Follow(0, 1);
  scene.Out(1);
  EXPECT_CUDA(cudaStreamSynchronize(scene.stream(1)));
  EXPECT_TRUE(scene.Holds(2, 0));
}

TEST_F(EmuStream, HostFunctionsRunInOrderAndMayNotCallCuda) {
  for (unsigned mask = 0; mask < 2; ++mask) {
    Reset(WithMask(mask));
    Scene scene(1);
    struct Seen {
      float* host;
      float value = 0;
      cudaError_t error = cudaSuccess;
    } seen{scene.host};
    scene.In(0);
    scene.Change(0, 0, 7);
    scene.Out(0);
    EXPECT_CUDA(cudaLaunchHostFunc(
        scene.stream(0),
        [](void* data) {
          auto& s = *static_cast<Seen*>(data);
          s.value = s.host[0];
          s.error = cudaDeviceSynchronize();
        },
        &seen));
    EXPECT_CUDA(cudaStreamSynchronize(scene.stream(0)));
    EXPECT_EQ(seen.value, 7);
    EXPECT_EQ(seen.error, cudaErrorNotPermitted);
    EXPECT_EQ(cudaGetLastError(), cudaErrorNotPermitted);
  }
}

TEST_F(EmuStream, TheLegacyStreamWaitsForBlockingStreamsOnly) {
  Scene scene(1);  // non-blocking
  cudaStream_t blocking;
  EXPECT_CUDA(cudaStreamCreate(&blocking));
  const DeviceArray<float> own(1);
  scene.In(0);
  EXPECT_CUDA(cudaMemsetAsync(own.get(), 0, sizeof(float), blocking));
  EXPECT_EQ(own.Read()[0], 0);
  EXPECT_EQ(cudaStreamQuery(scene.stream(0)), cudaSuccess);  // its only operation: run by the query
  scene.Change(0, 2, 0);
  EXPECT_CUDA(Affine(own.get(), 1, 1, 3, nullptr));
  EXPECT_EQ(KernelsRun(), 1);  // the one in the non-blocking stream still waits
  EXPECT_EQ(own.Read()[0], 3);
  EXPECT_CUDA(cudaStreamDestroy(blocking));
}

TEST_F(EmuStream, TheLegacyStreamWaitsForEvents) {
  Scene scene(1);
  cudaEvent_t event;
  EXPECT_CUDA(cudaEventCreate(&event));
  scene.In(0);
  EXPECT_CUDA(cudaEventRecord(event, scene.stream(0)));
  EXPECT_CUDA(cudaStreamWaitEvent(nullptr, event, 0));
  EXPECT_CUDA(Affine(scene.device, kCount, 1, 1, nullptr));
  EXPECT_CUDA(cudaMemcpy(scene.host, scene.device, Scene::kBytes, cudaMemcpyDeviceToHost));
  EXPECT_TRUE(scene.Holds(1, 1));
  EXPECT_CUDA(cudaEventDestroy(event));
}

TEST_F(EmuStream, UnknownHandlesAreErrors) {
  cudaStream_t stream;
  EXPECT_CUDA(cudaStreamCreate(&stream));
  EXPECT_CUDA(cudaStreamDestroy(stream));
  EXPECT_EQ(cudaStreamSynchronize(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamDestroy(stream), cudaErrorInvalidResourceHandle);
  EXPECT_EQ(cudaStreamSynchronize(cudaStreamPerThread), cudaErrorInvalidResourceHandle);
}

// What an emulated NCCL will enqueue: an operation that is asked again until another process
// answers. Meanwhile other streams go on, and other threads can call CUDA (to abort it, say).
TEST_F(EmuStream, OperationsMayWaitForOthers) {
  Scene scene(2);
  std::atomic<bool> answered = false;
  EXPECT_CUDA(Api("test", [&](Runtime& runtime) {
    return runtime.Enqueue(scene.stream(0), [&answered] { return answered.load(); });
  }));
  scene.In(0);
  scene.Out(0);
  EXPECT_CUDA(cudaMemsetAsync(scene.device, 0, Scene::kBytes, scene.stream(1)));
  std::thread other([&] {
    while (cudaStreamQuery(scene.stream(1)) == cudaErrorNotReady) {
    }
    answered = true;
  });
  EXPECT_CUDA(cudaStreamSynchronize(scene.stream(0)));
  other.join();
  EXPECT_TRUE(scene.Holds(1, 0));
}

TEST_F(EmuStream, ThreadsOfTheProgramMayUseStreamsOfTheirOwn) {
  Scene one(1), two(1);
  const auto work = [](Scene& scene) {
    for (int i = 0; i < 20; ++i) {
      scene.In(0);
      scene.Change(0, 1, 1);
      scene.Out(0);
      EXPECT_CUDA(cudaStreamSynchronize(scene.stream(0)));
    }
  };
  std::thread other(work, std::ref(two));
  work(one);
  other.join();
  EXPECT_TRUE(one.Holds(1, 20));
  EXPECT_TRUE(two.Holds(1, 20));
}

}  // namespace
}  // namespace emu::self
