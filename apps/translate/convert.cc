// Reading pickled weights once, so that nobody has to again.
#include "apps/translate/convert.h"

#include <heed/attention.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "apps/output.h"
#include "apps/terminal.h"
#include "apps/translate/marian.h"
#include "libtorch/files.h"
#include "libtorch/pickle.h"
#include "libtorch/safetensors.h"

namespace heed::translate {
namespace {

namespace fs = std::filesystem;

constexpr const char *kPickle = "pytorch_model.bin", *kWeights = "model.safetensors", *kConfig = "config.json";
// What else may be in a model folder, beside the files about text.
constexpr const char* kOthers[] = {"preprocessor_config.json", "README.md"};

bool same(const torch::Tensor& a, const torch::Tensor& b) {
  return a.data_ptr() == b.data_ptr() && a.sizes() == b.sizes() && a.strides() == b.strides() && a.dtype() == b.dtype();
}

// The tensors of a pickle but for those that need not be kept.
nn::NamedTensors from_pickle(const std::string& path, Converted& done) {
  nn::NamedTensors kept;
  for (auto& [name, tensor] : nn::load_pickle(path)) {
    if (name.ends_with("embed_positions.weight")) {
      ++done.recomputed;
      continue;
    }
    // The pickle holds the one embedding of source, target and output four times, under the name `shared` first.
    bool copy = false;
    for (const auto& [other, there] : kept) copy = copy || same(tensor, there);
    if (copy) {
      ++done.copies;
      continue;
    }
    kept.emplace_back(std::move(name), std::move(tensor));
  }
  if (kept.empty()) throw Error(path + " holds no tensors");
  return kept;
}

void save(const nn::NamedTensors& tensors, Converted& done) {
  for (const auto& [name, tensor] : tensors) {
    ++done.tensors;
    done.numbers += tensor.numel();
  }
  nn::save_safetensors(done.path, tensors, {{"format", "pt"}});
}

// dtypes by the name they have here, and in config.json.
struct Dtype {
  const char* name;
  torch::ScalarType type;
  const char* config;
};
constexpr Dtype kDtypes[] = {
    {"f32", torch::kFloat32, "float32"}, {"f16", torch::kFloat16, "float16"}, {"bf16", torch::kBFloat16, "bfloat16"}};

const Dtype& dtype_from_name(const std::string& name) {
  for (const Dtype& dtype : kDtypes) {
    if (name == dtype.name) return dtype;
  }
  throw Error("there is no dtype '" + name + "'; choose f32, f16 or bf16");
}

struct ConvertArguments {
  std::string dir, out, dtype = "f16";
};

int convert_command(const ConvertArguments& arguments) {
  const Converted done =
      arguments.out.empty() ? convert(arguments.dir) : convert(arguments.dir, arguments.out, arguments.dtype);
  std::string text =
      done.path + ": " + app::thousands(done.tensors) + " tensors, " + app::thousands(done.numbers) + " numbers";
  if (done.copies > 0) text += "; " + app::thousands(done.copies) + " copies of tied tensors left out";
  if (done.recomputed > 0) text += "; " + app::thousands(done.recomputed) + " tables of positions left out";
  app::print(text + "\n");
  return app::kOk;
}

}  // namespace

Converted convert(const std::string& dir) {
  const std::string from = (fs::path(dir) / kPickle).string();
  Converted done{.path = (fs::path(dir) / kWeights).string()};
  std::error_code ignored;
  if (!fs::is_directory(dir, ignored)) throw Error(dir + " is not a folder; give one that has a pytorch_model.bin");
  if (fs::exists(done.path, ignored)) throw Error(done.path + " is there already; remove it to have it made anew");
  if (!fs::exists(from, ignored)) throw Error("there is no file " + from + " to convert");
  save(from_pickle(from, done), done);
  return done;
}

Converted convert(const std::string& dir, const std::string& out, const std::string& dtype) {
  const Dtype& to = dtype_from_name(dtype);
  const std::string pickle = (fs::path(dir) / kPickle).string(), weights = (fs::path(dir) / kWeights).string(),
                    config = (fs::path(dir) / kConfig).string();
  Converted done{.path = (fs::path(out) / kWeights).string()};
  std::error_code ignored;
  if (!fs::exists(config, ignored)) throw Error(dir + " has no config.json; give the folder of a model");
  for (const char* name : {kConfig, kWeights}) {
    if (fs::exists(fs::path(out) / name, ignored))
      throw Error(out + " has a " + name + " already; give the name of a new folder");
  }
  auto json = nlohmann::ordered_json::parse(nn::read_file(config), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    throw Error(config + " is not a JSON object; the file is damaged, copy the model folder again");
  json["torch_dtype"] = to.config;

  nn::NamedTensors tensors =
      fs::exists(weights, ignored) ? nn::load_safetensors(weights).tensors : from_pickle(pickle, done);
  for (auto& [name, tensor] : tensors) {
    if (!tensor.is_floating_point()) continue;
    const bool finite = tensor.isfinite().all().item<bool>();
    tensor = tensor.to(to.type);
    if (finite && !tensor.isfinite().all().item<bool>())
      throw Error("the tensor '" + name + "' has numbers that f16 cannot hold (beyond 65504); choose --dtype bf16");
  }

  nn::make_folder(out);
  save(tensors, done);
  for (const auto& [name, bytes] : read_text_files(dir)) nn::write_file((fs::path(out) / name).string(), bytes);
  for (const char* name : kOthers) {
    if (fs::exists(fs::path(dir) / name, ignored))
      nn::write_file((fs::path(out) / name).string(), nn::read_file((fs::path(dir) / name).string()));
  }
  // Last, so that a folder with a config.json is a whole model.
  nn::write_file((fs::path(out) / kConfig).string(), json.dump(2) + "\n");
  return done;
}

void add_convert(app::Program& program) {
  CLI::App* command =
      program.heed.add_subcommand("convert", "Make model.safetensors of a pytorch_model.bin, or weights smaller");
  auto a = std::make_shared<ConvertArguments>();
  command->add_option("DIR", a->dir, "A model's folder")->required()->type_name(" ");
  CLI::Option* out =
      command->add_option("--out", a->out, "A new folder, for the same model with --dtype weights")->type_name("DIR");
  command->add_option("--dtype", a->dtype, "f16 and bf16 halve the file; both are computed with in f32")
      ->check(CLI::IsMember({"f32", "f16", "bf16"}))
      ->type_name("NAME")
      ->needs(out)
      ->capture_default_str();
  command->footer(
      "Without --out: needed once for models that come with a pytorch_model.bin alone. A pickle is a program; this\n"
      "reads the tensors in it and refuses all else. The folder stays as it is but for the new file.\n\n"
      "Examples:\n"
      "  heed convert opus-mt-en-de\n"
      "  heed translate opus-mt-en-de < english.txt > german.txt\n"
      "  heed convert opus-mt-en-de --out half-the-size --dtype f16");
  app::run_with(program, command, a, convert_command);
}

}  // namespace heed::translate
