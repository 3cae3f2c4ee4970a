// preprocessor_config.json, read, written and done.
#include "apps/pictures/preprocess.h"

#include <heed/attention.h>

#include <filesystem>
#include <system_error>

#include "apps/pictures/resize.h"
#include "libtorch/files.h"

namespace heed::pictures {
namespace {

using nlohmann::json;
using Kind = Preprocess::Kind;

constexpr const char* kFile = "preprocessor_config.json";
// By Kind.
constexpr const char* kNames[] = {"ViT", "DeiT", "Segformer"};

std::string path_in(const std::string& dir) { return (std::filesystem::path(dir) / kFile).string(); }

// transformers has called them feature extractors, and has a second and a third implementation of each.
Kind kind_of(const app::JsonKeys& file) {
  const char* key = file.says("image_processor_type") ? "image_processor_type" : "feature_extractor_type";
  const std::string name = file.text(key);
  for (size_t i = 0; i < std::size(kNames); ++i) {
    for (const char* suffix : {"ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor"}) {
      if (name == std::string(kNames[i]) + suffix) return static_cast<Kind>(i);
    }
  }
  file.refuse(key, "that of ViT, DeiT or Segformer");
}

Size size_of(const app::JsonKeys& file, const char* key, bool shortest_edge) {
  const json& value = file.at(key);
  if (!value.is_object()) {
    const int64_t both = file.size(key);
    return {both, both};
  }
  const app::JsonKeys sizes(value, file.file() + "'s \"" + key + "\"");
  if (value.size() == 2 && sizes.says("height") && sizes.says("width"))
    return {sizes.size("height"), sizes.size("width")};
  if (shortest_edge && value.size() == 1 && sizes.says("shortest_edge"))
    return {.shortest_edge = sizes.size("shortest_edge")};
  file.refuse(key, shortest_edge ? R"({"height", "width"}, {"shortest_edge"} or one number)"
                                 : R"({"height", "width"} or one number)");
}

json json_of(const Size& size) {
  if (size.shortest_edge > 0) return {{"shortest_edge", size.shortest_edge}};
  return {{"height", size.height}, {"width", size.width}};
}

std::vector<double> channels_of(const app::JsonKeys& file, const char* key) {
  const json& value = file.at(key);
  std::vector<double> numbers;
  if (value.is_array()) {
    for (const json& number : value) {
      if (number.is_number()) numbers.push_back(number.get<double>());
    }
  }
  if (numbers.empty() || numbers.size() != value.size()) file.refuse(key, "a list of numbers, one for each channel");
  return numbers;
}

}  // namespace

Preprocess Preprocess::defaults(Kind kind) {
  Preprocess p;
  p.kind = kind;
  p.rescale = 1.0 / 255;
  p.mean = p.std = {0.5, 0.5, 0.5};
  switch (kind) {
    case Kind::vit:
      p.resize = {224, 224};
      break;
    case Kind::deit:
      p.resize = {256, 256};
      p.resample = Resample::bicubic;
      p.crop = {224, 224};
      break;
    case Kind::segformer:
      p.resize = {512, 512};
      p.mean = {0.485, 0.456, 0.406};
      p.std = {0.229, 0.224, 0.225};
      break;
  }
  return p;
}

Preprocess Preprocess::from_json(const app::JsonKeys& file) {
  Preprocess p = defaults(kind_of(file));
  if (file.says("size")) p.resize = size_of(file, "size", /*shortest_edge=*/true);
  if (!file.flag("do_resize", true)) p.resize.reset();
  p.resample = static_cast<Resample>(file.whole("resample", 0, 5, static_cast<int64_t>(p.resample)));

  const bool crops = file.flag("do_center_crop", p.crop.has_value());
  if (file.says("crop_size")) p.crop = size_of(file, "crop_size", /*shortest_edge=*/false);
  if (!crops) p.crop.reset();
  if (crops && !p.crop) throw Error(file.file() + " says \"do_center_crop\" and no \"crop_size\"");

  p.rescale = file.number("rescale_factor", p.rescale);
  if (!file.flag("do_rescale", true)) p.rescale.reset();

  if (file.says("image_mean")) p.mean = channels_of(file, "image_mean");
  if (file.says("image_std")) p.std = channels_of(file, "image_std");
  if (p.mean.size() != p.std.size()) {
    throw Error(file.file() + " has " + std::to_string(p.mean.size()) + " means and " + std::to_string(p.std.size()) +
                " deviations; each channel has one of both");
  }
  for (const double std : p.std) {
    if (!(std > 0)) file.refuse("image_std", "above 0");
  }
  if (!file.flag("do_normalize", true)) p.mean = p.std = {};

  // The older of the two names first, so that the newer one goes before it.
  p.reduce_labels = file.flag("do_reduce_labels", file.flag("reduce_labels", false));
  return p;
}

json Preprocess::to_json() const {
  json j = {{"image_processor_type", std::string(kNames[static_cast<size_t>(kind)]) + "ImageProcessor"},
            {"do_resize", resize.has_value()},
            {"resample", static_cast<int>(resample)},
            {"do_center_crop", crop.has_value()},
            {"do_rescale", rescale.has_value()},
            {"do_normalize", !mean.empty()}};
  if (resize) j["size"] = json_of(*resize);
  if (crop) j["crop_size"] = json_of(*crop);
  if (rescale) j["rescale_factor"] = *rescale;
  if (!mean.empty()) {
    j["image_mean"] = mean;
    j["image_std"] = std;
  }
  if (kind == Kind::segformer) j["do_reduce_labels"] = reduce_labels;
  return j;
}

Preprocess Preprocess::load(const std::string& dir) {
  std::error_code ignored;
  if (!std::filesystem::exists(path_in(dir), ignored)) {
    throw Error(dir + " has no " + kFile +
                ", which says how the model's pictures are prepared; copy it from where the " + "model comes from");
  }
  return from_json(app::JsonKeys::read(path_in(dir)));
}

void Preprocess::save(const std::string& dir) const { nn::write_file(path_in(dir), to_json().dump(2) + "\n"); }

// ---- Doing it ----

namespace {

Filter filter_of(Resample resample) {
  switch (resample) {
    case Resample::nearest:
      return Filter::nearest;
    case Resample::lanczos:
      return Filter::lanczos;
    case Resample::bilinear:
      return Filter::bilinear;
    case Resample::bicubic:
      return Filter::bicubic;
    case Resample::box:
      return Filter::box;
    case Resample::hamming:
      break;
  }
  throw Error("preprocessor_config.json asks for Hamming's filter (\"resample\": 5), which is not here; bilinear is 2");
}

}  // namespace

Picture prepare(const Picture& picture, const Preprocess& preprocess) {
  Picture result = picture;
  if (preprocess.resize) {
    const Size& size = *preprocess.resize;
    const Filter filter = filter_of(preprocess.resample);
    if (size.shortest_edge > 0) {
      result = resize_shorter_side(result, size.shortest_edge, filter);
    } else if (size.width != result.width || size.height != result.height) {
      result = resize(result, size.width, size.height, filter);
    }
  }
  if (preprocess.crop) result = centre_crop(result, preprocess.crop->width, preprocess.crop->height);
  return result;
}

// What the bytes of a channel are to the network.
std::vector<std::array<float, 256>> numbers_of(const Preprocess& p, int64_t channels) {
  std::vector<std::array<float, 256>> tables(static_cast<size_t>(channels));
  for (size_t c = 0; c < tables.size(); ++c) {
    const auto of = [&](const std::vector<double>& values) { return values.at(values.size() == 1 ? 0 : c); };
    for (size_t byte = 0; byte < 256; ++byte) {
      double number = static_cast<double>(byte) * p.rescale.value_or(1);
      if (!p.mean.empty()) number = (number - of(p.mean)) / of(p.std);
      tables[c][byte] = static_cast<float>(number);
    }
  }
  return tables;
}

}  // namespace heed::pictures
