// What the checks of the contract share: values in a device's memory, and words for a difference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_format.h"
#include "kernels/check.h"
#include "kernels/device.h"
#include "parallel/communicator.h"

namespace metattn {

inline absl::Status Differs(const Communicator& comm, const char* what, std::int64_t at,
                            double expected, double actual) {
  return absl::InternalError(absl::StrFormat("rank %d of %d: %s, place %d: expected %.9g, got %.9g",
                                             comm.rank(), comm.size(), what, at, expected, actual));
}

// Values in the device's memory, written and read by copies on a stream of their own.
template <typename T>
class DeviceValues {
 public:
  DeviceValues(Device& device, std::int64_t count, T value = 0)
      : device_(device),
        stream_(device.NewStream().value()),
        buffer_(device.Allocate(static_cast<std::size_t>(count) * sizeof(T)).value()),
        values_(static_cast<std::size_t>(count), value) {
    Write();
  }

  std::vector<T>& values() { return values_; }
  T& operator[](std::int64_t i) { return values_[static_cast<std::size_t>(i)]; }
  void Write() {  // another stream may go on with it
    device_.CopyIn(values_.data(), {&buffer_}, bytes(), *stream_);
    METATTN_CHECK(stream_->Synchronize().ok(), "writing values");
  }
  absl::Status Read() {
    device_.CopyOut({&buffer_}, values_.data(), bytes(), *stream_);
    return stream_->Synchronize();
  }
  View view(std::int64_t at = 0) const {
    return {&buffer_, static_cast<std::size_t>(at) * sizeof(T)};
  }
  Stream& stream() { return *stream_; }

 private:
  std::size_t bytes() const { return values_.size() * sizeof(T); }

  Device& device_;
  std::unique_ptr<Stream> stream_;
  Buffer buffer_;
  std::vector<T> values_;
};

using Floats = DeviceValues<float>;
using Bytes = DeviceValues<std::uint8_t>;

}  // namespace metattn
