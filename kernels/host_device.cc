// Host memory and inline streams. Large allocations are mapped directly, with huge pages where the
// system grants them (attention and weights stream through gigabytes: TLB misses would show), and
// cost memory only once touched.
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "kernels/device.h"

namespace metattn {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr std::size_t kMapFrom = std::size_t{4} << 20;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

absl::Status OutOfMemory(std::size_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrFormat("cannot allocate %d bytes of host memory", bytes));
}

// CHECKs that [view, view + bytes) lies inside its buffer.
std::byte* Range(View view, std::size_t bytes) {
  METATTN_CHECK(view, "copy with an absent view");
  METATTN_CHECK(view.offset_bytes <= view.buffer->bytes() &&
                    bytes <= view.buffer->bytes() - view.offset_bytes,
                absl::StrFormat("copy of %d bytes at %d in a buffer of %d", bytes,
                                view.offset_bytes, view.buffer->bytes()));
  return view.As<std::byte>();
}

class HostStream final : public Stream {
 public:
  absl::Status Synchronize() override { return absl::OkStatus(); }
  int Mark() override {
    marks_.push_back(std::chrono::steady_clock::now());
    return static_cast<int>(marks_.size()) - 1;
  }
  double SecondsBetween(int from, int to) const override {
    return std::chrono::duration<double>(marks_.at(to) - marks_.at(from)).count();
  }
  void ResetMarks() override { marks_.clear(); }

 private:
  std::vector<std::chrono::steady_clock::time_point> marks_;
};

class HostDevice final : public Device {
 public:
  std::string_view name() const override { return "host"; }

  absl::StatusOr<Buffer> Allocate(std::size_t bytes) override {
    if (bytes > SIZE_MAX / 2) return OutOfMemory(bytes);
    return bytes >= kMapFrom ? Map(bytes) : FromHeap(bytes);
  }

  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override {
    return std::make_unique<HostStream>();
  }

  void CopyIn(const void* host, View to, std::size_t bytes, Stream&) override {
    if (bytes != 0) std::memcpy(Range(to, bytes), host, bytes);
  }

  void CopyOut(View from, void* host, std::size_t bytes, Stream&) override {
    if (bytes != 0) std::memcpy(host, Range(from, bytes), bytes);
  }

  void Copy(View from, View to, std::size_t bytes, Stream&) override {
    if (bytes != 0) std::memcpy(Range(to, bytes), Range(from, bytes), bytes);
  }

 private:
  static absl::StatusOr<Buffer> FromHeap(std::size_t bytes) {
    // Never empty, so that the data pointer is always a real one.
    const std::size_t rounded = (bytes / kAlignment + 1) * kAlignment;
    void* data = std::aligned_alloc(kAlignment, rounded);
    if (data == nullptr) return OutOfMemory(bytes);
    std::memset(data, 0, rounded);
    return Buffer(data, bytes, [](void* p) { std::free(p); });
  }

  static absl::StatusOr<Buffer> Map(std::size_t bytes) {
    const std::size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
    const std::size_t mapped = rounded + kHugePage;  // room to start on a huge page
    void* raw = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return OutOfMemory(bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(raw);
    const std::size_t skip = (kHugePage - address % kHugePage) % kHugePage;
    void* data = static_cast<std::byte*>(raw) + skip;
    (void)madvise(data, rounded, MADV_HUGEPAGE);  // a wish: refused where the kernel lacks it
    return Buffer(data, bytes, [raw, mapped](void*) { munmap(raw, mapped); });
  }
};

}  // namespace

std::unique_ptr<Device> MakeHostDevice() { return std::make_unique<HostDevice>(); }

}  // namespace metattn
