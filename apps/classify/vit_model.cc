// Vision Transformers for classification: config.json, the head, the names of the tensors.
#include "apps/classify/vit_model.h"

#include <heed/attention.h>

#include <utility>

#include "apps/model_folder.h"

namespace heed::classify {
namespace {

using nlohmann::json;
using torch::Tensor;

constexpr const char* kReader = "heed classify";

std::string architecture_of(const VitConfig& c) {
  if (!c.encoder.distillation_token) return "ViTForImageClassification";
  return c.teacher ? "DeiTForImageClassificationWithTeacher" : "DeiTForImageClassification";
}

app::TensorNames names_of(const VitConfig& config) {
  const std::string root = config.encoder.distillation_token ? "deit." : "vit.";
  const auto rule = [](const char* ours, const std::string& v4, const std::string& v5) {
    return app::Renaming{std::regex(ours), v4, v5};
  };
  return {{rule(R"(^encoder\.layers\.)", root + "encoder.layer.", root + "layers."),
           rule(R"(^encoder\.layernorm\.)", root + "layernorm.", root + "layernorm."),
           rule(R"(^encoder\.)", root + "embeddings.", root + "embeddings."),
           rule(R"(\.self_attn\.q_proj\.)", ".attention.attention.query.", ".attention.q_proj."),
           rule(R"(\.self_attn\.k_proj\.)", ".attention.attention.key.", ".attention.k_proj."),
           rule(R"(\.self_attn\.v_proj\.)", ".attention.attention.value.", ".attention.v_proj."),
           rule(R"(\.self_attn\.out_proj\.)", ".attention.output.dense.", ".attention.o_proj."),
           rule(R"(\.self_attn_layer_norm\.)", ".layernorm_before.", ".layernorm_before."),
           rule(R"(\.final_layer_norm\.)", ".layernorm_after.", ".layernorm_after."),
           rule(R"(\.fc1\.)", ".intermediate.dense.", ".mlp.fc1."), rule(R"(\.fc2\.)", ".output.dense.", ".mlp.fc2.")},
          // What a model of another task left behind.
          std::regex(R"(\.pooler\.|\.mask_token$)")};
}

double numbers_of(const VitConfig& c) {
  const auto classes = static_cast<double>(c.labels.size()), hidden = static_cast<double>(c.encoder.hidden);
  return nn::ViTImpl::parameters_of(c.encoder) + (c.teacher ? 2 : 1) * classes * (hidden + 1);
}

}  // namespace

VitConfig VitConfig::from_json(const app::JsonKeys& j) {
  VitConfig c;
  nn::ViTOptions& e = c.encoder;
  const std::string type = j.text("model_type");
  e.distillation_token = type == "deit";
  if (j.says("architectures")) {
    const json& names = j.at("architectures");
    const auto is = [&](const char* name) { return names == json::array({name}); };
    c.teacher = e.distillation_token && is("DeiTForImageClassificationWithTeacher");
    if (!c.teacher && !is(e.distillation_token ? "DeiTForImageClassification" : "ViTForImageClassification"))
      j.refuse("architectures", "one that gives classes, [\"" + architecture_of(c) + "\"] for instance");
  }
  e.hidden = j.size("hidden_size");
  e.layers = j.size("num_hidden_layers");
  e.heads = j.size("num_attention_heads");
  e.ffn = j.size("intermediate_size");
  e.patch = j.side("patch_size");
  e.image = j.side("image_size");
  e.channels = j.size("num_channels", e.channels);
  e.qkv_bias = j.flag("qkv_bias", e.qkv_bias);
  e.dropout = j.share("hidden_dropout_prob", e.dropout);
  e.attention_dropout = j.share("attention_probs_dropout_prob", e.attention_dropout);
  e.layer_norm_eps = j.number("layer_norm_eps", e.layer_norm_eps);
  e.activation = app::activation_of(j, "hidden_act");
  if (e.hidden % e.heads != 0) {
    j.refuse("hidden_size", "divisible by \"num_attention_heads\", " + std::to_string(e.heads));
  }
  if (e.patch > e.image) j.refuse("patch_size", "at most \"image_size\", " + std::to_string(e.image));
  c.labels = app::labels_of(j);
  return c;
}

json VitConfig::to_json() const {
  const nn::ViTOptions& e = encoder;
  json j = {{"model_type", e.distillation_token ? "deit" : "vit"},
            {"architectures", {architecture_of(*this)}},
            {"hidden_size", e.hidden},
            {"num_hidden_layers", e.layers},
            {"num_attention_heads", e.heads},
            {"intermediate_size", e.ffn},
            {"patch_size", e.patch},
            {"image_size", e.image},
            {"num_channels", e.channels},
            {"qkv_bias", e.qkv_bias},
            {"hidden_dropout_prob", e.dropout},
            {"attention_probs_dropout_prob", e.attention_dropout},
            {"layer_norm_eps", e.layer_norm_eps},
            {"hidden_act", nn::name_of(e.activation)},
            {"encoder_stride", e.patch},
            {"initializer_range", 0.02},
            {"torch_dtype", "float32"}};
  app::put_labels(labels, j);
  return j;
}

VitModel::VitModel(VitConfig config) : config_(std::move(config)) {
  const auto classes = static_cast<int64_t>(config_.labels.size());
  if (config_.teacher && !config_.encoder.distillation_token)
    throw Error("a model with a teacher's head needs a distillation token; set encoder.distillation_token");
  if (classes < 1) throw Error("a classifier got 0 labels; give at least 1");
  encoder_ = register_module("encoder", nn::ViT(config_.encoder));
  config_.encoder = encoder_->options;
  const torch::nn::LinearOptions head(config_.encoder.hidden, classes);
  classifier_ = register_module(config_.teacher ? "cls_classifier" : "classifier", torch::nn::Linear(head));
  if (config_.teacher) distillation_classifier_ = register_module("distillation_classifier", torch::nn::Linear(head));
}

Classified VitModel::forward(const Tensor& pictures, bool want_attention) {
  nn::ViTOutput encoded = encoder_->forward(pictures, want_attention);
  Tensor logits = classifier_->forward(encoded.tokens.select(1, 0));
  if (config_.teacher) logits = (logits + distillation_classifier_->forward(encoded.tokens.select(1, 1))) / 2;
  return {std::move(logits), std::move(encoded)};
}

std::shared_ptr<VitModel> load_vit(const std::string& dir) {
  const VitConfig config = VitConfig::from_json(app::read_config(dir, {"vit", "deit"}, kReader));
  const nn::SafeTensors file = app::read_weights(dir, numbers_of(config));
  const app::RandomStateGuard guard;
  const auto model = std::make_shared<VitModel>(config);
  app::fill(*model, file, dir, names_of(config));
  model->eval();
  return model;
}

void save_vit(const VitModel& model, const std::string& dir) {
  app::save_model_folder(dir, model, names_of(model.config()), model.config().to_json());
}

}  // namespace heed::classify
