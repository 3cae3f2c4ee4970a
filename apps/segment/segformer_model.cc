// SegFormers for segmentation: config.json and the names of the tensors.
#include "apps/segment/segformer_model.h"

#include <heed/attention.h>

#include <utility>

#include "apps/model_folder.h"

namespace heed::segment {
namespace {

using nlohmann::json;
using Stage = nn::SegformerStageOptions;

constexpr const char *kReader = "heed segment", *kArchitecture = "SegformerForSemanticSegmentation";

// The lists of config.json, one number for each stage.
struct StageKey {
  const char* key;
  int64_t Stage::*member;
};
constexpr StageKey kStageKeys[] = {{"hidden_sizes", &Stage::hidden},       {"depths", &Stage::depth},
                                   {"num_attention_heads", &Stage::heads}, {"sr_ratios", &Stage::reduction},
                                   {"patch_sizes", &Stage::patch},         {"strides", &Stage::stride},
                                   {"mlp_ratios", &Stage::mlp_ratio}};

app::TensorNames names() {
  const auto rule = [](const char* ours, const char* v4, const char* v5) {
    return app::Renaming{std::regex(ours), v4, v5};
  };
  return {
      {rule(R"(^encoder\.stages\.(\d+)\.blocks\.(\d+)\.)", "segformer.encoder.block.$1.$2.",
            "segformer.stages.$1.blocks.$2."),
       rule(R"(^encoder\.stages\.(\d+)\.patch_embeddings\.projection\.)", "segformer.encoder.patch_embeddings.$1.proj.",
            "segformer.stages.$1.patch_embeddings.proj."),
       rule(R"(^encoder\.stages\.(\d+)\.patch_norm\.)", "segformer.encoder.patch_embeddings.$1.layer_norm.",
            "segformer.stages.$1.patch_embeddings.layer_norm."),
       rule(R"(^encoder\.stages\.(\d+)\.layer_norm\.)", "segformer.encoder.layer_norm.$1.",
            "segformer.stages.$1.layer_norm."),
       rule(R"(\.layernorm_before\.)", ".layer_norm_1.", ".layernorm_before."),
       rule(R"(\.layernorm_after\.)", ".layer_norm_2.", ".layernorm_after."),
       rule(R"(\.attention\.q_proj\.)", ".attention.self.query.", ".attention.q_proj."),
       rule(R"(\.attention\.k_proj\.)", ".attention.self.key.", ".attention.k_proj."),
       rule(R"(\.attention\.v_proj\.)", ".attention.self.value.", ".attention.v_proj."),
       rule(R"(\.attention\.out_proj\.)", ".attention.output.dense.", ".attention.o_proj."),
       rule(R"(\.sequence_reduction\.)", ".attention.self.sr.", ".attention.sequence_reduction.sequence_reduction."),
       rule(R"(\.reduction_norm\.)", ".attention.self.layer_norm.", ".attention.sequence_reduction.layer_norm."),
       rule(R"(\.fc1\.)", ".mlp.dense1.", ".mlp.fc1."), rule(R"(\.fc2\.)", ".mlp.dense2.", ".mlp.fc2."),
       rule(R"(\.dwconv\.)", ".mlp.dwconv.dwconv.", ".mlp.dwconv.dwconv."),
       rule(R"(^decode_head\.projections\.(\d+)\.)", "decode_head.linear_c.$1.proj.",
            "decode_head.linear_projections.$1.proj.")},
      // The head of the encoder's first training, on ImageNet.
      std::regex(R"(^classifier\.)")};
}

}  // namespace

SegformerConfig SegformerConfig::from_json(const app::JsonKeys& j) {
  SegformerConfig c;
  nn::SegformerOptions& o = c.options;
  if (j.says("architectures") && j.at("architectures") != json::array({kArchitecture}))
    j.refuse("architectures", std::string("[\"") + kArchitecture + "\"]: a model that gives pixels their classes");
  o.stages.assign(static_cast<size_t>(j.whole("num_encoder_blocks", 1, 64)), {});
  for (const auto& [key, member] : kStageKeys) {
    const std::vector<int64_t> sizes = j.sizes(key);
    if (sizes.size() != o.stages.size())
      j.refuse(key, "a list of " + std::to_string(o.stages.size()) + " numbers, one for each encoder block");
    for (size_t i = 0; i < sizes.size(); ++i) o.stages[i].*member = sizes[i];
  }
  for (const Stage& stage : o.stages) {
    if (stage.hidden % stage.heads != 0) {
      j.refuse("hidden_sizes", "divisible by \"num_attention_heads\", which " + std::to_string(stage.hidden) +
                                   " is not by " + std::to_string(stage.heads));
    }
  }
  o.channels = j.size("num_channels", o.channels);
  o.decoder_hidden = j.size("decoder_hidden_size");
  o.activation = app::activation_of(j, "hidden_act");
  o.dropout = j.share("hidden_dropout_prob", o.dropout);
  o.attention_dropout = j.share("attention_probs_dropout_prob", o.attention_dropout);
  o.classifier_dropout = j.share("classifier_dropout_prob", o.classifier_dropout);
  o.drop_path = j.share("drop_path_rate", o.drop_path);
  c.ignored = j.whole("semantic_loss_ignore_index", -app::kLargestSize, app::kLargestSize, c.ignored);
  c.labels = app::labels_of(j);
  o.classes = static_cast<int64_t>(c.labels.size());
  return c;
}

json SegformerConfig::to_json() const {
  const nn::SegformerOptions& o = options;
  json j = {{"model_type", "segformer"},
            {"architectures", {kArchitecture}},
            {"num_channels", o.channels},
            {"num_encoder_blocks", o.stages.size()},
            {"decoder_hidden_size", o.decoder_hidden},
            {"hidden_act", nn::name_of(o.activation)},
            {"hidden_dropout_prob", o.dropout},
            {"attention_probs_dropout_prob", o.attention_dropout},
            {"classifier_dropout_prob", o.classifier_dropout},
            {"drop_path_rate", o.drop_path},
            {"semantic_loss_ignore_index", ignored},
            {"reshape_last_stage", true},
            {"layer_norm_eps", 1e-6},  // what every config.json says and no model does
            {"initializer_range", 0.02},
            {"torch_dtype", "float32"}};
  for (const auto& [key, member] : kStageKeys) {
    j[key] = json::array();
    for (const Stage& stage : o.stages) j[key].push_back(stage.*member);
  }
  app::put_labels(labels, j);
  return j;
}

SegformerModel::SegformerModel(SegformerConfig given) : config(std::move(given)) {
  config.options.classes = static_cast<int64_t>(config.labels.size());
  net = nn::Segformer(config.options);
}

SegformerModel load_segformer(const std::string& dir) {
  const SegformerConfig config = SegformerConfig::from_json(app::read_config(dir, {"segformer"}, kReader));
  const nn::SafeTensors file = app::read_weights(dir, nn::SegformerImpl::parameters_of(config.options));
  const app::RandomStateGuard guard;
  SegformerModel model(config);
  app::fill(*model.net, file, dir, names());
  model.net->eval();
  return model;
}

void save_segformer(const SegformerModel& model, const std::string& dir) {
  app::save_model_folder(dir, *model.net, names(), model.config.to_json());
}

}  // namespace heed::segment
