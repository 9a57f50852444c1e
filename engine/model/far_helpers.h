// Far pages of some KV heads on other ranks, and the rows that are read there (design section 6).
//
// Every rank has one: a home sends rows of its last heads to its helpers, a helper reads them from
// its copies and returns partials, all in buckets of fixed size and inside whatever records the
// step. Rows that find no room, or whose copies are not there yet, stay at home. Only steps of one
// row a sequence are helped. Copies of blocks that are whole go to the helpers after each step,
// over a channel and a stream of their own, in an order that follows from the plans.
//
// Owns the copies, messages and scratch; borrows Kernels and Communicator. One caller; every rank
// makes the same calls. Errors: memory, a lost peer. Cost: a step that is helped exchanges two
// messages per link and layer; a helper stores the pages of a head a second time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/config.h"
#include "engine/model/helper_plan.h"
#include "engine/model/page_copies.h"
#include "engine/model/step_batch.h"
#include "kernels/kernels.h"
#include "parallel/communicator.h"

namespace metattn {

struct FarHelpersShape {
  int layers = 0;
  int group = 1;            // g
  int head_dim = 0;         // d
  int max_rows = 0;         // of a helped step
  std::int64_t blocks = 0;  // ids are 0 .. blocks - 1
  int head_begin = 0;       // of the model's KV heads, those of this rank
  int heads = 0;            // H
};

class FarHelpers {
 public:
  // Messages of a step go over one channel, copies of pages over another; both are borrowed.
  struct Channels {
    Communicator* step = nullptr;
    Communicator* background = nullptr;
  };
  // Null where nobody helps anybody.
  static absl::StatusOr<std::unique_ptr<FarHelpers>> Create(const FarHelpersShape& shape,
                                                            std::span<const HelperLink> links,
                                                            Kernels& kernels,
                                                            const Channels& channels);
  // What the copies of one block take on a rank.
  static std::int64_t BytesPerBlock(std::span<const HelperLink> links, int rank, int layers,
                                    std::int64_t page_bytes);

  // Chooses the rows of the step that are read elsewhere; enqueues the copy that says so.
  void BeginStep(const StepBatch& batch, Stream& stream);
  // Whether there are any. Where not, Send and Merge need not, and must not, be called.
  bool active() const { return active_; }

  // In each layer, of this rank's heads; without heads all of it is absent.
  struct Work {
    View q;           // [T, H*g, d] f32
    WorkList full;    // rows leave it
    Partial partial;  // [T, H*g]
  };
  // Rows go to their helpers; what this rank reads for others is enqueued.
  [[nodiscard]] absl::Status Send(int layer, const StepBatch& batch, const Work& work,
                                  Stream& stream);
  // Their far partials come back, into `partial`.
  [[nodiscard]] absl::Status Merge(const StepBatch& batch, const Work& work, Stream& stream);

  // After the last layer: enqueues the copy of what sent() reads, once the stream was waited for:
  // how many (row, KV head, layer) of this rank others have read in the step.
  void CopyOut(Stream& stream);
  std::int64_t sent() const;

  // When the stream was waited for; pages: as PageTable has them in layer 0. Outside records. The
  // stream waits for copies of the step before, the host does not.
  [[nodiscard]] absl::Status EndStep(const StepBatch& batch, const PageTable& pages,
                                     Stream& stream);

 private:
  // A link that this rank is an end of.
  struct End {
    std::size_t index = 0;  // in links_
    HelperLink link;
    bool home = false;
    Buffer request, answer;
    Buffer helped;  // home: [T] u8
    Buffer sent;    // home: [layers] i32, rows that the helper got
    Buffer copies;  // helper: [blocks, layers] pages
  };

  FarHelpers(const FarHelpersShape& shape, std::span<const HelperLink> links, Kernels& kernels,
             const Channels& channels);
  absl::Status Allocate(int rank);
  BucketShape Bucket(const HelperLink& link, const StepBatch& batch) const;
  DispatchArgs Args(DispatchStep step, const End& end, const StepBatch& batch,
                    const Work& work) const;
  void Serve(int layer, const End& end, const StepBatch& batch, Stream& stream);
  void Copies(const std::vector<std::int32_t>& blocks, const PageTable& pages,
              std::vector<Transfer>* sends, std::vector<Transfer>* recvs) const;

  FarHelpersShape shape_;
  std::vector<HelperLink> links_;  // of all ranks
  Kernels* kernels_;
  Channels channels_;
  std::unique_ptr<Stream> copying_;
  PageCopies blocks_;
  std::vector<End> ends_;
  Buffer q_, o_, m_, l_;                           // of the rows that are read for others
  std::vector<std::vector<std::uint8_t>> chosen_;  // of each link: the step's rows
  bool active_ = false;
  std::vector<std::int32_t> sent_;
};

}  // namespace metattn
