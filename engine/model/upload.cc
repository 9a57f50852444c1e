#include "engine/model/upload.h"

#include <algorithm>
#include <memory>

#include "engine/formats/status_macros.h"

namespace metattn {

absl::StatusOr<Buffer> UploadBytes(std::span<const std::byte> bytes, Device& device) {
  METATTN_ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(std::max<std::size_t>(bytes.size(), 64)));
  METATTN_ASSIGN_OR_RETURN(const std::unique_ptr<Stream> stream, device.NewStream());
  device.CopyIn(bytes.data(), View{&buffer}, bytes.size(), *stream);
  METATTN_RETURN_IF_ERROR(stream->Synchronize());
  return buffer;
}

absl::StatusOr<Buffer> UploadFloats(std::span<const float> values, Device& device) {
  return UploadBytes(std::as_bytes(values), device);
}

void UploadTogether::Add(std::span<const std::byte> bytes, View* to) {
  if (bytes.empty()) return;
  pieces_.push_back({to, bytes_.size()});
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  bytes_.resize((bytes_.size() + kAlignment - 1) / kAlignment * kAlignment);
}

absl::Status UploadTogether::Finish(Device& device, Buffer* buffer) {
  METATTN_ASSIGN_OR_RETURN(*buffer, UploadBytes(bytes_, device));
  for (const Piece& piece : pieces_) *piece.to = View{buffer, piece.offset};
  return absl::OkStatus();
}

}  // namespace metattn
