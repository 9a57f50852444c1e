// A whole file mapped read-only. Owns the mapping; bytes() stays valid as long as the object lives.
// Thread safe after Open. Errors: NOT_FOUND, PERMISSION_DENIED, INVALID_ARGUMENT (a directory, an
// empty file), each naming the path. A file that shrinks under the mapping is outside what we can
// catch.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"

namespace metattn {

class MappedFile {
 public:
  static absl::StatusOr<std::unique_ptr<MappedFile>> Open(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

 private:
  MappedFile(std::string path, std::span<const std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}
  std::string path_;
  std::span<const std::byte> bytes_;
};

}  // namespace metattn
