// A model on disk: one GGUF file or a Hugging Face directory, checked and mapped, never trusted.
//
// Tensors carry canonical names, GGUF's: token_embd.weight, output_norm.weight, output.weight,
// rope_freqs.weight,
// blk.N.{attn_norm,attn_q,attn_k,attn_v,attn_output,attn_q_norm,attn_k_norm,ffn_norm,ffn_gate,ffn_up,ffn_down}.weight
// and blk.N.attn_{q,k,v}.bias. Hugging Face names are translated; what has no canonical name keeps
// its own. Ownership: the checkpoint owns its mappings; TensorInfo.data points into them. Thread
// safe after Open. Errors name the file, and the tensor or key: NOT_FOUND, INVALID_ARGUMENT
// (damaged or hostile content), UNIMPLEMENTED (a type or version we do not read). Cost: headers are
// parsed, tensor data is not touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/types.h"

namespace metattn {

class Gguf;  // engine/formats/gguf.h

struct TensorInfo {
  std::string name;  // canonical
  DType dtype = DType::kF32;
  std::vector<std::int64_t>
      shape;  // row-major, outermost first: a weight is [rows (outputs), cols (inputs)]
  std::span<const std::byte> data;  // exactly the bytes of the shape
};

class Checkpoint {
 public:
  enum class Format { kGguf, kHuggingFace };

  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path);
  virtual ~Checkpoint() = default;

  virtual Format format() const = 0;
  virtual const std::string& path() const = 0;
  virtual const std::vector<TensorInfo>& tensors() const = 0;  // in file order
  virtual const TensorInfo* Find(std::string_view name) const = 0;

  // GGUF: the parsed header with its metadata; null for a directory.
  virtual const Gguf* gguf() const = 0;
  // Directory: the text of config.json, tokenizer.json, tokenizer_config.json; empty where absent
  // or GGUF.
  virtual std::string_view config_json() const = 0;
  virtual std::string_view tokenizer_json() const = 0;
  virtual std::string_view tokenizer_config_json() const = 0;

  // The tensor, with this very shape; the error names both shapes.
  absl::StatusOr<const TensorInfo*> Require(std::string_view name,
                                            std::span<const std::int64_t> shape) const;
};

}  // namespace metattn
