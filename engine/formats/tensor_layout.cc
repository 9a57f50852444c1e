#include "engine/formats/tensor_layout.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "engine/formats/text.h"

namespace metattn {

std::string ShapeText(std::span<const std::int64_t> shape) {
  return absl::StrCat("[", absl::StrJoin(shape.begin(), shape.end(), ", "), "]");
}

absl::StatusOr<std::int64_t> ByteSize(DType dtype, std::span<const std::int64_t> shape) {
  const DTypeInfo info = Info(dtype);
  std::int64_t values = 1;
  for (const std::int64_t extent : shape) {
    if (extent <= 0 || __builtin_mul_overflow(values, extent, &values)) {
      return absl::InvalidArgumentError(
          absl::StrFormat("the shape %s is too large or not positive", ShapeText(shape)));
    }
  }
  const std::int64_t inner = shape.empty() ? 1 : shape.back();
  if (inner % info.block_values != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("a row of %d values is not a whole number of %s blocks of %d", inner,
                        info.name, info.block_values));
  }
  std::int64_t bytes = 0;
  if (__builtin_mul_overflow(values / info.block_values, info.block_bytes, &bytes)) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the shape %s is too large", ShapeText(shape)));
  }
  return bytes;
}

absl::Status PlaceInData(const std::string& file, std::span<const std::byte> data,
                         std::span<const std::uint64_t> offsets, std::uint64_t alignment,
                         std::span<TensorInfo> tensors) {
  const auto damaged = [&](const TensorInfo& tensor, const std::string& what) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: tensor %s: %s", file, Quoted(tensor.name), what));
  };
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const auto bytes = ByteSize(tensors[i].dtype, tensors[i].shape);
    if (!bytes.ok()) return damaged(tensors[i], std::string(bytes.status().message()));
    const std::uint64_t begin = offsets[i], size = static_cast<std::uint64_t>(*bytes);
    if (begin % alignment != 0) {
      return damaged(tensors[i],
                     absl::StrFormat("its offset %d is not a multiple of %d", begin, alignment));
    }
    if (begin > data.size() || size > data.size() - begin) {
      return damaged(tensors[i], absl::StrFormat("its %d bytes at offset %d go past the end of the "
                                                 "%d bytes of tensor data (is the file "
                                                 "truncated?)",
                                                 size, begin, data.size()));
    }
    tensors[i].data = data.subspan(begin, size);
  }
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return offsets[a] < offsets[b]; });
  std::uint64_t end = 0;  // of the tensor before
  for (const std::size_t i : order) {
    if (offsets[i] < end) return damaged(tensors[i], "it overlaps the tensor before it");
    if (offsets[i] - end >= alignment) {
      return damaged(tensors[i],
                     absl::StrFormat("%d bytes before it belong to no tensor", offsets[i] - end));
    }
    end = offsets[i] + tensors[i].data.size();
  }
  if (data.size() - end >= alignment) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: the last %d bytes belong to no tensor", file, data.size() - end));
  }
  return absl::OkStatus();
}

}  // namespace metattn
