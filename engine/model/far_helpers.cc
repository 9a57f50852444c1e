#include "engine/model/far_helpers.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "engine/formats/status_macros.h"
#include "kernels/check.h"

namespace metattn {
namespace {

// Blocks whose pages are copied after one step at most: a prefill stores more of them, its copies
// spread over the steps behind it.
constexpr int kBlocksPerStep = 32;

}  // namespace

FarHelpers::FarHelpers(const FarHelpersShape& shape, std::span<const HelperLink> links,
                       Kernels& kernels, const Channels& channels)
    : shape_(shape),
      links_(links.begin(), links.end()),
      kernels_(&kernels),
      channels_(channels),
      blocks_(shape.blocks, kBlocksPerStep),
      chosen_(links.size()) {}

absl::StatusOr<std::unique_ptr<FarHelpers>> FarHelpers::Create(const FarHelpersShape& shape,
                                                               std::span<const HelperLink> links,
                                                               Kernels& kernels,
                                                               const Channels& channels) {
  if (links.empty()) return nullptr;
  METATTN_CHECK(channels.background != nullptr, "copies of pages have no channel");
  std::unique_ptr<FarHelpers> helpers(new FarHelpers(shape, links, kernels, channels));
  METATTN_RETURN_IF_ERROR(helpers->Allocate(channels.step->rank()));
  METATTN_ASSIGN_OR_RETURN(helpers->copying_, kernels.device().NewStream());
  return helpers;
}

std::int64_t FarHelpers::BytesPerBlock(std::span<const HelperLink> links, int rank, int layers,
                                       std::int64_t page_bytes) {
  const auto helped = std::ranges::count(links, rank, &HelperLink::helper);
  return helped * layers * page_bytes;
}

absl::Status FarHelpers::Allocate(int rank) {
  const auto allocate = [&](std::int64_t bytes, Buffer* buffer) -> absl::Status {
    METATTN_ASSIGN_OR_RETURN(*buffer, kernels_->device().Allocate(static_cast<std::size_t>(bytes)));
    return absl::OkStatus();
  };
  bool helps = false;
  for (std::size_t i = 0; i < links_.size(); ++i) {
    const HelperLink& link = links_[i];
    if (link.home != rank && link.helper != rank) continue;
    End& end = ends_.emplace_back(End{.index = i, .link = link, .home = link.home == rank});
    const BucketShape largest = {BucketRows(link, shape_.max_rows), shape_.group, shape_.head_dim};
    METATTN_RETURN_IF_ERROR(allocate(largest.request_bytes(), &end.request));
    METATTN_RETURN_IF_ERROR(allocate(largest.answer_bytes(), &end.answer));
    const std::int64_t page = kernels_->PageBytes(shape_.head_dim);
    if (end.home) {
      METATTN_RETURN_IF_ERROR(allocate(shape_.max_rows, &end.helped));
      METATTN_RETURN_IF_ERROR(allocate(std::int64_t{shape_.layers} * 4, &end.sent));
    } else {
      METATTN_RETURN_IF_ERROR(allocate(shape_.blocks * shape_.layers * page, &end.copies));
      helps = true;
    }
  }
  if (!helps) return absl::OkStatus();
  const std::int64_t queries = std::int64_t{shape_.max_rows} * shape_.group;
  METATTN_RETURN_IF_ERROR(allocate(queries * shape_.head_dim * 4, &q_));
  METATTN_RETURN_IF_ERROR(allocate(queries * shape_.head_dim * 4, &o_));
  METATTN_RETURN_IF_ERROR(allocate(queries * 4, &m_));
  return allocate(queries * 4, &l_);
}

void FarHelpers::BeginStep(const StepBatch& batch, Stream& stream) {
  blocks_.BeginStep(batch);
  active_ = false;
  const auto rows = static_cast<std::size_t>(batch.plan_rows());
  if (batch.shape().empty() || batch.rows().tokens > shape_.max_rows) return;
  std::vector<std::int32_t> far_tokens(rows);
  std::vector<std::uint8_t> copied(rows);
  for (std::size_t i = 0; i < rows; ++i) {
    const std::int32_t end = batch.far_ends()[i];
    far_tokens[i] = std::max(0, end - batch.rows().sinks);
    copied[i] = blocks_.Has(batch, static_cast<int>(i), end) ? 1 : 0;
  }
  for (std::size_t i = 0; i < links_.size(); ++i) {
    std::vector<std::uint8_t> free = copied;  // of other links of this head
    for (std::size_t j = 0; j < i; ++j) {
      if (links_[j].head != links_[i].head) continue;
      for (std::size_t row = 0; row < rows; ++row) free[row] &= chosen_[j][row] == 0 ? 1 : 0;
    }
    chosen_[i] = ChooseHelped(links_[i], far_tokens, free);
    active_ = active_ || std::ranges::find(chosen_[i], 1) != chosen_[i].end();
    chosen_[i].resize(static_cast<std::size_t>(batch.rows().tokens));  // padding
  }
  if (!active_) return;
  for (const End& end : ends_) {
    if (!end.home) continue;
    const std::vector<std::uint8_t>& chosen = chosen_[end.index];
    kernels_->device().CopyIn(chosen.data(), View{&end.helped}, chosen.size(), stream);
  }
}

BucketShape FarHelpers::Bucket(const HelperLink& link, const StepBatch& batch) const {
  return {BucketRows(link, batch.rows().tokens), shape_.group, shape_.head_dim};
}

DispatchArgs FarHelpers::Args(DispatchStep step, const End& end, const StepBatch& batch,
                              const Work& work) const {
  DispatchArgs args = {.step = step,
                       .bucket = Bucket(end.link, batch),
                       .tokens = batch.rows().tokens,
                       .request = {&end.request},
                       .answer = {&end.answer}};
  if (end.home) {
    args.heads = shape_.heads;
    args.head = end.link.head - shape_.head_begin;
    args.helped = {&end.helped};
    args.list = work.full;
    args.q = work.q;
    args.partial = work.partial;
  } else {
    args.q = {&q_};
    args.partial = {{&o_}, {&m_}, {&l_}};
  }
  return args;
}

void FarHelpers::Serve(int layer, const End& end, const StepBatch& batch, Stream& stream) {
  const DispatchArgs args = Args(DispatchStep::kServe, end, batch, {});
  kernels_->Dispatch(args, stream);
  const auto page = static_cast<std::size_t>(kernels_->PageBytes(shape_.head_dim));
  const PageTable pages = {
      {&end.copies, static_cast<std::size_t>(layer) * page}, shape_.layers, 1, shape_.head_dim};
  kernels_->FarFull({.rows = batch.rows(),
                     .pages = pages,
                     .group = shape_.group,
                     .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                     .q = args.q,
                     .list = RequestList(args.bucket, args.request),
                     .partial = args.partial},
                    stream);
  kernels_->Dispatch(Args(DispatchStep::kReturn, end, batch, {}), stream);
}

absl::Status FarHelpers::Send(int layer, const StepBatch& batch, const Work& work, Stream& stream) {
  std::vector<Transfer> sends, recvs;
  for (const End& end : ends_) {
    const int peer = end.home ? end.link.helper : end.link.home;
    if (end.home) {
      const DispatchArgs args = Args(DispatchStep::kSend, end, batch, work);
      kernels_->Dispatch(args, stream);
      kernels_->device().Copy(BucketViews(args).count,
                              {&end.sent, static_cast<std::size_t>(layer) * 4}, 4, stream);
    }
    (end.home ? sends : recvs)
        .push_back({peer, {&end.request}, Bucket(end.link, batch).request_bytes()});
  }
  METATTN_RETURN_IF_ERROR(channels_.step->Exchange(sends, recvs, stream));
  for (const End& end : ends_) {
    if (!end.home) Serve(layer, end, batch, stream);
  }
  return absl::OkStatus();
}

absl::Status FarHelpers::Merge(const StepBatch& batch, const Work& work, Stream& stream) {
  std::vector<Transfer> sends, recvs;
  for (const End& end : ends_) {
    const int peer = end.home ? end.link.helper : end.link.home;
    (end.home ? recvs : sends)
        .push_back({peer, {&end.answer}, Bucket(end.link, batch).answer_bytes()});
  }
  METATTN_RETURN_IF_ERROR(channels_.step->Exchange(sends, recvs, stream));
  for (const End& end : ends_) {
    if (end.home) kernels_->Dispatch(Args(DispatchStep::kMerge, end, batch, work), stream);
  }
  return absl::OkStatus();
}

void FarHelpers::Copies(const std::vector<std::int32_t>& blocks, const PageTable& pages,
                        std::vector<Transfer>* sends, std::vector<Transfer>* recvs) const {
  const std::int64_t bytes = kernels_->PageBytes(shape_.head_dim);
  for (const End& end : ends_) {
    for (const std::int64_t block : blocks) {
      for (std::int64_t layer = 0; layer < shape_.layers; ++layer) {
        if (end.home) {
          const std::int64_t head = layer * shape_.heads + end.link.head - shape_.head_begin;
          View page = pages.base;
          page.offset_bytes +=
              static_cast<std::size_t>((block * pages.block_stride + head) * bytes);
          sends->push_back({end.link.helper, page, bytes});
        } else {
          const std::int64_t at = (block * shape_.layers + layer) * bytes;
          recvs->push_back({end.link.home, {&end.copies, static_cast<std::size_t>(at)}, bytes});
        }
      }
    }
  }
}

void FarHelpers::CopyOut(Stream& stream) {
  const auto layers = static_cast<std::size_t>(shape_.layers);
  sent_.clear();
  if (!active_) return;
  const auto homes = static_cast<std::size_t>(std::ranges::count(ends_, true, &End::home));
  sent_.resize(homes * layers);
  std::int32_t* to = sent_.data();
  for (const End& end : ends_) {
    if (!end.home) continue;
    kernels_->device().CopyOut({&end.sent}, to, layers * 4, stream);
    to += layers;
  }
}

std::int64_t FarHelpers::sent() const {
  return std::accumulate(sent_.begin(), sent_.end(), std::int64_t{0});
}

absl::Status FarHelpers::EndStep(const StepBatch& batch, const PageTable& pages, Stream& stream) {
  stream.WaitFor(*copying_);  // the next step finds there what the last one had enqueued
  const std::vector<std::int32_t> blocks = blocks_.EndStep(batch);
  if (blocks.empty()) return absl::OkStatus();
  std::vector<Transfer> sends, recvs;
  Copies(blocks, pages, &sends, &recvs);
  return channels_.background->Exchange(sends, recvs, *copying_);
}

}  // namespace metattn
