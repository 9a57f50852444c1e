// A cursor over untrusted bytes, little endian: every read is checked against the end.
// Borrows the bytes. Not thread safe. A read that does not fit returns false and moves nothing.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <type_traits>

namespace metattn {

static_assert(std::endian::native == std::endian::little, "files are read without byte swaps");

class ByteReader {
 public:
  explicit ByteReader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::size_t position() const { return position_; }
  std::size_t remaining() const { return bytes_.size() - position_; }

  template <typename T>
  [[nodiscard]] bool Read(T* value) {
    static_assert(std::is_arithmetic_v<T>);
    if (remaining() < sizeof(T)) return false;
    std::memcpy(value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return true;
  }

  // A u64 length and that many bytes; the view points into the bytes.
  [[nodiscard]] bool ReadString(std::string_view* value) {
    std::uint64_t length = 0;
    if (!Read(&length)) return false;
    if (length > remaining()) {
      position_ -= sizeof(length);
      return false;
    }
    *value = {reinterpret_cast<const char*>(bytes_.data() + position_),
              static_cast<std::size_t>(length)};
    position_ += static_cast<std::size_t>(length);
    return true;
  }

 private:
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
};

}  // namespace metattn
