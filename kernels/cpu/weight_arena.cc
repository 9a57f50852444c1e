#include "kernels/cpu/weight_arena.h"

#include <utility>

namespace metattn::cpu {

absl::StatusOr<std::shared_ptr<const Buffer>> WeightArena::NewSlab(std::size_t bytes) {
  absl::StatusOr<Buffer> memory = device_.Allocate(bytes);
  if (!memory.ok()) return memory.status();
  return std::make_shared<const Buffer>(std::move(*memory));
}

absl::StatusOr<WeightArena::Piece> WeightArena::Allocate(std::size_t bytes) {
  if (bytes >= kOwnSlabFrom) {
    absl::StatusOr<std::shared_ptr<const Buffer>> own = NewSlab(bytes);
    if (!own.ok()) return own.status();
    std::byte* data = (*own)->data();
    return Piece{*std::move(own), data};
  }
  if (slab_ == nullptr || slab_->bytes() - used_ < bytes) {
    absl::StatusOr<std::shared_ptr<const Buffer>> fresh = NewSlab(kSlabBytes);
    if (!fresh.ok()) return fresh.status();
    slab_ = *std::move(fresh);
    used_ = 0;
  }
  std::byte* data = slab_->data() + used_;
  used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
  return Piece{slab_, data};
}

}  // namespace metattn::cpu
