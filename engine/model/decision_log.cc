// Recording and replaying decisions. A file: Header, then records of RecordHead, layers * heads
// bytes and as many f32 margins, in the order the rows ran.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/formats/mapped_file.h"
#include "engine/formats/status_macros.h"
#include "engine/model/decision_source.h"
#include "kernels/check.h"
#include "kernels/routing_ops.h"

namespace metattn {
namespace {

constexpr std::uint32_t kLogMagic = 0x4345444d;  // "MDEC"
constexpr std::uint32_t kLogVersion = 2;
constexpr const char* kSuffix = ".decisions";

struct Header {
  std::uint32_t magic = kLogMagic, version = kLogVersion;
  std::int32_t layers = 0, kv_heads = 0, head_begin = 0, head_end = 0;
};

struct RecordHead {
  std::uint64_t request = 0;
  std::int64_t position = 0;
};

std::size_t RecordBytes(std::size_t cells) {
  return sizeof(RecordHead) + cells * (1 + sizeof(float));
}

class FileRecorder final : public DecisionRecorder {
 public:
  absl::Status Open(const RecorderArgs& args) {
    std::error_code error;
    std::filesystem::create_directories(args.directory, error);
    path_ = absl::StrFormat("%s/rank-%d%s", args.directory, args.rank, kSuffix);
    file_.open(path_, std::ios::binary | std::ios::trunc);
    const Header header = {kLogMagic,     kLogVersion,     args.layers,
                           args.kv_heads, args.head_begin, args.head_end};
    file_.write(reinterpret_cast<const char*>(&header), sizeof(header));
    return Written();
  }

  absl::Status Record(const DecisionRows& rows, std::span<const std::uint8_t> decisions,
                      std::span<const float> margins) override {
    const std::size_t tokens = rows.position.size();
    const auto heads = static_cast<std::size_t>(rows.heads());
    const std::size_t cells = static_cast<std::size_t>(rows.layers) * heads;
    std::vector<char> record(RecordBytes(cells));  // margins 0
    for (std::size_t t = 0; t < tokens; ++t) {
      const RecordHead head = {rows.request[t], rows.position[t]};
      std::memcpy(record.data(), &head, sizeof(head));
      char* to = record.data() + sizeof(head);
      for (std::size_t at = 0; at < cells; at += heads) {
        const std::size_t from = at * tokens + t * heads;
        std::memcpy(to + at, decisions.data() + from, heads);
        if (margins.empty()) continue;
        std::memcpy(to + cells + at * sizeof(float), margins.data() + from, heads * sizeof(float));
      }
      file_.write(record.data(), static_cast<std::streamsize>(record.size()));
    }
    file_.flush();
    return Written();
  }

 private:
  absl::Status Written() const {
    if (file_) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrFormat("--record-decisions: cannot write %s: %s", path_, std::strerror(errno)));
  }

  std::string path_;
  std::ofstream file_;
};

class Replay final : public DecisionSource {
 public:
  Replay(int layers, int kv_heads) : layers_(layers), kv_heads_(kv_heads) {}

  absl::Status Load(const std::string& path);
  absl::Status Decide(const DecisionRows& rows, std::span<std::uint8_t> decisions) override;
  bool empty() const { return rows_.empty(); }

 private:
  std::size_t cells() const { return static_cast<std::size_t>(std::int64_t{layers_} * kv_heads_); }

  int layers_, kv_heads_;
  // [layers, KV heads]; a cell that no file holds is kUnknown.
  static constexpr std::uint8_t kUnknown = 255;
  std::map<std::pair<std::uint64_t, std::int64_t>, std::vector<std::uint8_t>> rows_;
};

absl::Status Replay::Load(const std::string& path) {
  METATTN_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  std::span<const std::byte> bytes = file->bytes();
  const auto damaged = [&](const char* what) {
    return absl::InvalidArgumentError(absl::StrFormat("--replay-decisions: %s %s", path, what));
  };
  Header header;
  if (bytes.size() < sizeof(header)) return damaged("is too short");
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.magic != kLogMagic) return damaged("is no decision log");
  if (header.version != kLogVersion) return damaged("was recorded by another version");
  if (header.layers != layers_ || header.kv_heads != kv_heads_) {
    return damaged("was recorded with another model");
  }
  if (header.head_begin < 0 || header.head_end < header.head_begin || header.head_end > kv_heads_) {
    return damaged("has KV heads out of range");
  }
  const auto heads = static_cast<std::size_t>(header.head_end - header.head_begin);
  const std::size_t size = RecordBytes(static_cast<std::size_t>(layers_) * heads);
  bytes = bytes.subspan(sizeof(header));
  if (bytes.size() % size != 0) return damaged("ends in the middle of a record");
  for (; !bytes.empty(); bytes = bytes.subspan(size)) {
    RecordHead head;
    std::memcpy(&head, bytes.data(), sizeof(head));
    auto& row = rows_.try_emplace({head.request, head.position}, cells(), kUnknown).first->second;
    const std::byte* from = bytes.data() + sizeof(head);
    for (int layer = 0; layer < layers_; ++layer) {
      for (int h = header.head_begin; h < header.head_end; ++h, ++from) {
        const auto decision = std::to_integer<std::uint8_t>(*from);
        if (decision == kMixture) {
          return absl::UnimplementedError(absl::StrFormat(
              "--replay-decisions: %s: request %d, position %d, layer %d, KV head %d mixed "
              "mechanisms; a log holds no weights, so mixtures cannot be replayed",
              path, head.request, head.position, layer, h));
        }
        if (decision >= kMechanisms) return damaged("holds an unknown mechanism");
        row[static_cast<std::size_t>(std::int64_t{layer} * kv_heads_ + h)] = decision;
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Replay::Decide(const DecisionRows& rows, std::span<std::uint8_t> decisions) {
  METATTN_CHECK(rows.layers == layers_ && rows.head_end <= kv_heads_, "another model");
  const std::size_t tokens = rows.position.size();
  const auto heads = static_cast<std::size_t>(rows.heads());
  for (std::size_t t = 0; t < tokens; ++t) {
    const auto found = rows_.find({rows.request[t], rows.position[t]});
    for (std::size_t layer = 0; layer < static_cast<std::size_t>(layers_); ++layer) {
      for (std::size_t h = 0; h < heads; ++h) {
        std::uint8_t decision = static_cast<std::uint8_t>(Mechanism::kLocal);
        if (rows.eligible[t] != 0) {
          decision = found == rows_.end()
                         ? kUnknown
                         : found->second[layer * static_cast<std::size_t>(kv_heads_) +
                                         static_cast<std::size_t>(rows.head_begin) + h];
        }
        if (decision == kUnknown) {
          return absl::NotFoundError(
              absl::StrFormat("--replay-decisions: request %d, position %d was not recorded",
                              rows.request[t], rows.position[t]));
        }
        decisions[(layer * tokens + t) * heads + h] = decision;
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<DecisionSource>> ReplayDecisions(const std::string& directory,
                                                                int layers, int kv_heads) {
  auto replay = std::make_unique<Replay>(layers, kv_heads);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(directory, error)) {
    if (entry.path().extension() != kSuffix) continue;
    METATTN_RETURN_IF_ERROR(replay->Load(entry.path().string()));
  }
  if (error || replay->empty()) {
    return absl::NotFoundError(
        absl::StrCat("--replay-decisions: no recorded decisions in ", directory));
  }
  return replay;
}

absl::StatusOr<std::unique_ptr<DecisionRecorder>> RecordDecisions(const RecorderArgs& args) {
  auto recorder = std::make_unique<FileRecorder>();
  METATTN_RETURN_IF_ERROR(recorder->Open(args));
  return recorder;
}

}  // namespace metattn
