#include "tests/support/controller_writer.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <numbers>
#include <random>
#include <utility>

#include "engine/formats/checkpoint.h"
#include "engine/model/fingerprint.h"
#include "tests/support/encode_values.h"
#include "tests/support/tiny_directory.h"

namespace metattn::test {
namespace {

using Json = nlohmann::json;

class Maker {
 public:
  explicit Maker(std::uint64_t seed) : random_(seed) {}

  // mean + deviation * (standard normal).
  void Add(const std::string& name, DType dtype, std::vector<std::int64_t> shape, double mean,
           double deviation) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& v : values) v = static_cast<float>(mean + deviation * Normal());
    AddValues(name, dtype, std::move(shape), values);
  }
  // Near the unit matrix, as a feature map is where its training starts.
  void AddMaps(const std::string& name, std::int64_t heads, std::int64_t d) {
    std::vector<float> values(static_cast<std::size_t>(heads * d * d));
    for (std::size_t i = 0; i < values.size(); ++i) {
      const auto in_map = static_cast<std::int64_t>(i) % (d * d);
      const double unit = in_map / d == in_map % d ? 1 : 0;
      values[i] = static_cast<float>(unit + 0.3 * Normal());
    }
    AddValues(name, DType::kBF16, {heads, d, d}, values);
  }

  std::vector<SafetensorsEntry> list;

 private:
  void AddValues(const std::string& name, DType dtype, std::vector<std::int64_t> shape,
                 const std::vector<float>& values) {
    list.push_back({name, SafetensorsType(dtype), std::move(shape), EncodeValues(dtype, values)});
  }
  double Uniform() { return (static_cast<double>(random_() >> 11) + 1.0) * 0x1p-53; }
  double Normal() {
    const double radius = std::sqrt(-2.0 * std::log(Uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * Uniform());
  }
  std::mt19937_64 random_;
};

// One triple for each KV head of each layer.
Json Triples(const ModelConfig& c, const std::function<Json(int layer, int head)>& triple) {
  Json layers = Json::array();
  for (int l = 0; l < c.layers; ++l) {
    Json heads = Json::array();
    for (int h = 0; h < c.kv_heads; ++h) heads.push_back(triple(l, h));
    layers.push_back(std::move(heads));
  }
  return layers;
}

}  // namespace

std::vector<SafetensorsEntry> ControllerTensors(const ModelConfig& c, const ControllerOptions& o) {
  const std::int64_t heads = c.heads, kv = c.kv_heads, d = c.head_dim, width = o.width;
  const std::int64_t deciders = o.per_token ? 1 : kv;
  const std::int64_t scalars = o.paper ? 2 : o.per_token ? 1 : 1 + 4 * c.group();
  const double row = 1 / std::sqrt(static_cast<double>(c.hidden));
  const double in = 1 / std::sqrt(static_cast<double>(scalars));
  const double out = 1 / std::sqrt(static_cast<double>(width));
  Maker make(o.seed);
  for (int layer = 0; layer < c.layers; ++layer) {
    const std::string p = "layers." + std::to_string(layer) + ".";
    if (o.hedgehog) {
      make.AddMaps(p + "linear.w_q", heads, d);
      make.AddMaps(p + "linear.w_k", kv, d);
    }
    // The far part weighs about as much as the near one, so that leaving it out shows.
    make.Add(p + "linear.log_gain", DType::kF32, {heads}, o.hedgehog ? -3.0 : -7.0, 0.3);
    make.Add(p + "linear.kappa", DType::kF32, {heads}, 1.0, 0.05);
    make.Add(p + "controller.x", DType::kBF16, {width, c.hidden}, 0, row);
    make.Add(p + "controller.x_skip", DType::kBF16, {deciders, kMechanisms, c.hidden}, 0, 2 * row);
    make.Add(p + "controller.scalar_mean", DType::kF32, {deciders, scalars}, 1, 0.5);
    make.Add(p + "controller.scalar_scale", DType::kF32, {deciders, scalars}, 0.3, 0.05);
    make.Add(p + "controller.scalars", DType::kF32, {deciders, width, scalars}, 0, in);
    make.Add(p + "controller.bias", DType::kF32, {deciders, width}, 0, 0.3);
    make.Add(p + "controller.out", DType::kF32, {deciders, kMechanisms, width}, 0, out);
    make.Add(p + "controller.out_bias", DType::kF32, {deciders, kMechanisms}, 0, 0.3);
    make.Add(p + "controller.scalars_skip", DType::kF32, {deciders, kMechanisms, scalars}, 0,
             0.5 * in);
  }
  if (o.edit_tensors) o.edit_tensors(make.list);
  return std::move(make.list);
}

Json ControllerJson(const ModelConfig& c, const std::string& fingerprint,
                    const ControllerOptions& o) {
  Json json = {{"format", "metattn-controller"},
               {"version", 1},
               {"max_context", 512},
               {"window", o.window},
               {"sinks", o.sinks},
               {"block", 64},
               {"window_scope", o.exact_window ? "exact" : "block"},
               {"linear_scope", o.linear_all ? "all" : "far"},
               {"decisions", o.per_token ? "token" : "kv_head"},
               {"features", o.paper ? "paper" : "retrofit"},
               {"hidden_width", o.width},
               {"activation", "gelu_tanh"},
               {"link", o.softmax ? "softmax" : "softplus"},
               {"epsilon", 0.1},
               {"temperature", 1.5},
               {"feature_map", o.hedgehog ? "hedgehog" : "elu1"},
               {"eta", o.eta},
               {"uncertain_policy", o.mixture ? "mixture" : "full"},
               {"cost_weight", o.cost_weight},
               {"cost_weight_levels", {0.0, 0.5, 1.0, 2.0}},
               {"training", {{"seed", o.seed}, {"texts", {"none"}}}}};
  json["base_model"] = {{"fingerprint", fingerprint},
                        {"layers", c.layers},
                        {"hidden", c.hidden},
                        {"heads", c.heads},
                        {"kv_heads", c.kv_heads},
                        {"head_dim", c.head_dim},
                        {"vocab", c.vocab}};
  json["offsets"] = Triples(c, [&](int layer, int head) {
    return Json{0.05 * layer, -0.125, o.per_token ? 0.0 : 0.25 * (head % 2)};
  });
  json["mix"] = Triples(c, [](int, int) { return Json{0.25, 0.5, 0.25}; });
  if (o.edit_json) o.edit_json(json);
  return json;
}

std::string WriteController(const std::string& model_path, const std::string& directory,
                            const ControllerOptions& options) {
  const auto need = [](const absl::Status& status) {
    if (status.ok()) return;
    std::fprintf(stderr, "controller writer: %s\n", std::string(status.message()).c_str());
    std::abort();
  };
  const absl::StatusOr<std::unique_ptr<Checkpoint>> checkpoint = Checkpoint::Open(model_path);
  need(checkpoint.status());
  const absl::StatusOr<ModelConfig> config = ModelConfig::FromCheckpoint(**checkpoint);
  need(config.status());
  const absl::StatusOr<std::string> fingerprint = Fingerprint(**checkpoint, *config);
  need(fingerprint.status());
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  WriteFile(directory + "/controller.json", ControllerJson(*config, *fingerprint, options).dump(1));
  WriteFile(directory + "/controller.safetensors",
            SafetensorsBytes(ControllerTensors(*config, options)));
  return directory;
}

}  // namespace metattn::test
