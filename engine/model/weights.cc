#include "engine/model/weights.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/model/tensor_values.h"
#include "engine/model/upload.h"

namespace metattn {
namespace {

std::string LayerName(int layer, const char* tensor) {
  return absl::StrFormat("blk.%d.%s", layer, tensor);
}

// Row and column ranges of one checkpoint tensor.
struct Cut {
  std::string name;
  std::int64_t rows = 0, cols = 0;  // of the whole tensor
  std::int64_t row_begin = 0, row_end = 0;
  std::int64_t col_begin = 0, col_end = 0;
};

Cut RowCut(std::string name, std::int64_t rows, std::int64_t cols, std::int64_t begin,
           std::int64_t end) {
  return {std::move(name), rows, cols, begin, end, 0, cols};
}

Cut ColumnCut(std::string name, std::int64_t rows, std::int64_t cols, std::int64_t begin,
              std::int64_t end) {
  return {std::move(name), rows, cols, 0, rows, begin, end};
}

absl::StatusOr<MatrixPart> Resolve(const Checkpoint& checkpoint, const Cut& cut) {
  const std::array<std::int64_t, 2> shape = {cut.rows, cut.cols};
  absl::StatusOr<const TensorInfo*> tensor = checkpoint.Require(cut.name, shape);
  if (!tensor.ok()) return tensor.status();
  const DType dtype = (*tensor)->dtype;
  if (dtype == DType::kI32) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s: integers cannot be a weight", cut.name));
  }
  const int block = Info(dtype).block_values;
  if (cut.cols % block != 0 || cut.col_begin % block != 0 || cut.col_end % block != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("tensor %s: columns %d to %d of %d would cut through a quantisation block "
                        "of %d; use fewer ranks",
                        cut.name, cut.col_begin, cut.col_end, cut.cols, block));
  }
  const std::int64_t stride = BytesFor(dtype, cut.cols);
  return MatrixPart{
      dtype, (*tensor)->data.data() + cut.row_begin * stride + BytesFor(dtype, cut.col_begin),
      cut.row_end - cut.row_begin, stride};
}

absl::StatusOr<std::unique_ptr<Matrix>> PackCuts(const Checkpoint& checkpoint,
                                                 std::span<const Cut> cuts, Kernels& kernels) {
  std::vector<MatrixPart> parts;
  for (const Cut& cut : cuts) {
    absl::StatusOr<MatrixPart> part = Resolve(checkpoint, cut);
    if (!part.ok()) return part.status();
    parts.push_back(*part);
  }
  return kernels.Pack(parts, cuts.front().col_end - cuts.front().col_begin);
}

struct VectorCut {
  std::string name;
  std::int64_t size = 0, begin = 0, end = 0;
};

// Concatenates ranges of f32/f16/bf16 vectors into one f32 buffer.
absl::StatusOr<Buffer> LoadVector(const Checkpoint& checkpoint, std::span<const VectorCut> cuts,
                                  Kernels& kernels) {
  std::vector<float> values;
  for (const VectorCut& cut : cuts) {
    const std::array<std::int64_t, 1> shape = {cut.size};
    absl::StatusOr<const TensorInfo*> tensor = checkpoint.Require(cut.name, shape);
    if (!tensor.ok()) return tensor.status();
    absl::StatusOr<std::vector<float>> part = FloatValues(**tensor, cut.begin, cut.end - cut.begin);
    if (!part.ok()) return part.status();
    values.insert(values.end(), part->begin(), part->end());
  }
  return UploadFloats(values, kernels.device());
}

// All matrices of a slice as cuts; packing, byte counts and checks walk the same list.
struct LayerCuts {
  std::vector<Cut> qkv, attn_output, gate_up, down;
};

LayerCuts CutsOf(const ModelConfig& c, const Slice& s, int layer) {
  const std::int64_t d = c.head_dim, g = c.group();
  const std::int64_t q_width = c.heads * d, kv_width = c.kv_heads * d;
  const std::int64_t q0 = s.head_begin * g * d, q1 = s.head_end * g * d;
  const std::int64_t k0 = s.head_begin * d, k1 = s.head_end * d;
  LayerCuts cuts;
  cuts.qkv = {RowCut(LayerName(layer, "attn_q.weight"), q_width, c.hidden, q0, q1),
              RowCut(LayerName(layer, "attn_k.weight"), kv_width, c.hidden, k0, k1),
              RowCut(LayerName(layer, "attn_v.weight"), kv_width, c.hidden, k0, k1)};
  cuts.attn_output = {ColumnCut(LayerName(layer, "attn_output.weight"), c.hidden, q_width, q0, q1)};
  cuts.gate_up = {
      RowCut(LayerName(layer, "ffn_gate.weight"), c.ffn, c.hidden, s.ffn_begin, s.ffn_end),
      RowCut(LayerName(layer, "ffn_up.weight"), c.ffn, c.hidden, s.ffn_begin, s.ffn_end)};
  cuts.down = {
      ColumnCut(LayerName(layer, "ffn_down.weight"), c.hidden, c.ffn, s.ffn_begin, s.ffn_end)};
  return cuts;
}

Cut VocabCut(const ModelConfig& c, const Slice& s, const char* name) {
  return RowCut(name, c.vocab, c.hidden, s.vocab_begin, s.vocab_end);
}

absl::Status LoadVectors(const Checkpoint& checkpoint, const ModelConfig& c, const Slice& s,
                         int layer, Kernels& kernels, LayerWeights& out) {
  const std::int64_t d = c.head_dim, g = c.group();
  auto load = [&](std::vector<VectorCut> cuts, Buffer& to) -> absl::Status {
    absl::StatusOr<Buffer> buffer = LoadVector(checkpoint, cuts, kernels);
    if (!buffer.ok()) return buffer.status();
    to = *std::move(buffer);
    return absl::OkStatus();
  };
  absl::Status status =
      load({{LayerName(layer, "attn_norm.weight"), c.hidden, 0, c.hidden}}, out.attn_norm);
  if (status.ok())
    status = load({{LayerName(layer, "ffn_norm.weight"), c.hidden, 0, c.hidden}}, out.ffn_norm);
  if (status.ok() && c.qkv_bias) {
    status = load(
        {{LayerName(layer, "attn_q.bias"), c.heads * d, s.head_begin * g * d, s.head_end * g * d},
         {LayerName(layer, "attn_k.bias"), c.kv_heads * d, s.head_begin * d, s.head_end * d},
         {LayerName(layer, "attn_v.bias"), c.kv_heads * d, s.head_begin * d, s.head_end * d}},
        out.qkv_bias);
  }
  if (status.ok() && c.qk_norm)
    status = load({{LayerName(layer, "attn_q_norm.weight"), d, 0, d}}, out.q_norm);
  if (status.ok() && c.qk_norm)
    status = load({{LayerName(layer, "attn_k_norm.weight"), d, 0, d}}, out.k_norm);
  return status;
}

absl::Status LoadLayer(const Checkpoint& checkpoint, const ModelConfig& config, const Slice& slice,
                       int layer, Kernels& kernels, LayerWeights& out) {
  const LayerCuts cuts = CutsOf(config, slice, layer);
  auto pack = [&](const std::vector<Cut>& list, std::unique_ptr<Matrix>& to) -> absl::Status {
    absl::StatusOr<std::unique_ptr<Matrix>> matrix = PackCuts(checkpoint, list, kernels);
    if (!matrix.ok()) return matrix.status();
    to = *std::move(matrix);
    return absl::OkStatus();
  };
  absl::Status status = pack(cuts.qkv, out.qkv);
  if (status.ok()) status = pack(cuts.attn_output, out.attn_output);
  if (status.ok()) status = pack(cuts.gate_up, out.gate_up);
  if (status.ok()) status = pack(cuts.down, out.down);
  if (status.ok()) status = LoadVectors(checkpoint, config, slice, layer, kernels, out);
  return status;
}

}  // namespace

std::int64_t Weights::bytes_per_step() const {
  std::int64_t bytes = output().bytes();
  for (const LayerWeights& l : layers) {
    bytes += l.qkv->bytes() + l.attn_output->bytes() + l.gate_up->bytes() + l.down->bytes();
  }
  return bytes;
}

absl::StatusOr<Weights> Weights::Load(const Checkpoint& checkpoint, const ModelConfig& config,
                                      const Slice& slice, Kernels& kernels) {
  Weights w;
  const std::array<Cut, 1> embedding = {VocabCut(config, slice, "token_embd.weight")};
  absl::StatusOr<std::unique_ptr<Matrix>> table = PackCuts(checkpoint, embedding, kernels);
  if (!table.ok()) return table.status();
  w.embedding = *std::move(table);
  if (!config.tied_embeddings) {
    const std::array<Cut, 1> output = {VocabCut(config, slice, "output.weight")};
    absl::StatusOr<std::unique_ptr<Matrix>> head = PackCuts(checkpoint, output, kernels);
    if (!head.ok()) return head.status();
    w.head = *std::move(head);
  }
  const std::array<VectorCut, 1> norm = {
      VectorCut{"output_norm.weight", config.hidden, 0, config.hidden}};
  absl::StatusOr<Buffer> output_norm = LoadVector(checkpoint, norm, kernels);
  if (!output_norm.ok()) return output_norm.status();
  w.output_norm = *std::move(output_norm);
  w.layers.resize(config.layers);
  for (int i = 0; i < config.layers; ++i) {
    if (absl::Status s = LoadLayer(checkpoint, config, slice, i, kernels, w.layers[i]); !s.ok())
      return s;
  }
  return w;
}

absl::StatusOr<std::int64_t> StoredBytes(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const Slice& slice) {
  std::vector<Cut> all = {VocabCut(config, slice, "token_embd.weight")};
  if (!config.tied_embeddings) all.push_back(VocabCut(config, slice, "output.weight"));
  for (int i = 0; i < config.layers; ++i) {
    const LayerCuts cuts = CutsOf(config, slice, i);
    for (const auto* list : {&cuts.qkv, &cuts.attn_output, &cuts.gate_up, &cuts.down}) {
      all.insert(all.end(), list->begin(), list->end());
    }
  }
  std::int64_t bytes = 0;
  for (const Cut& cut : all) {
    absl::StatusOr<MatrixPart> part = Resolve(checkpoint, cut);
    if (!part.ok()) return part.status();
    bytes += part->rows * BytesFor(part->dtype, cut.col_end - cut.col_begin);
  }
  return bytes;
}

std::int64_t ColumnUnit(const Checkpoint& checkpoint) {
  std::int64_t unit = 1;
  for (const TensorInfo& t : checkpoint.tensors()) {
    const bool cut_by_columns =
        t.name.ends_with("attn_output.weight") || t.name.ends_with("ffn_down.weight");
    if (cut_by_columns) unit = std::max<std::int64_t>(unit, Info(t.dtype).block_values);
  }
  return unit;
}

SliceShape ShapeOf(const ModelConfig& config, const Checkpoint& checkpoint) {
  return {.kv_heads = config.kv_heads,
          .group = config.group(),
          .head_dim = config.head_dim,
          .hidden = config.hidden,
          .ffn = config.ffn,
          .vocab = config.vocab,
          .column_unit = ColumnUnit(checkpoint)};
}

}  // namespace metattn
