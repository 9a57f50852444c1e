// Compares a job's run after a restart with what the run before it stored. Pure; one caller.
//
// While the new run repeats the stored output nothing is to be written; when it has passed it, what
// goes beyond is; when it differs, all of the new run takes the stored output's place. Worked
// example (a test): stored tokens 1 2 3; chunks {1}, {2, 3, 4}: the first gives kRepeats, the
// second kPassed with rest {4} at offset 3. Cost: linear in what is stored, once.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rpc/job_store.h"

namespace metattn {

class JobReplay {
 public:
  enum class Outcome { kRepeats, kPassed, kDiffers };

  JobReplay() = default;  // nothing was stored: not active
  explicit JobReplay(const std::vector<OutputChunk>& stored);

  bool active() const { return active_; }
  // Takes the new run's next chunk; `last`: nothing follows. Ends being active unless kRepeats.
  Outcome Add(OutputChunk chunk, bool last);
  const OutputChunk& rest() const { return rest_; }             // after kPassed
  const std::vector<OutputChunk>& run() const { return run_; }  // after kDiffers

 private:
  bool active_ = false;
  std::vector<std::int32_t> tokens_;
  std::string text_;
  std::size_t tokens_seen_ = 0;  // of the new run
  std::string text_seen_;
  std::vector<OutputChunk> run_;
  OutputChunk rest_;
};

}  // namespace metattn
