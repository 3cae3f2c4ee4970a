// Reading pickled weights once, so that nobody has to again.
#include "apps/translate/convert.h"

#include <heed/attention.h>

#include <filesystem>
#include <system_error>

#include "apps/output.h"
#include "apps/terminal.h"
#include "libtorch/pickle.h"
#include "libtorch/safetensors.h"

namespace heed::translate {
namespace {

bool same(const torch::Tensor& a, const torch::Tensor& b) {
  return a.data_ptr() == b.data_ptr() && a.sizes() == b.sizes() && a.strides() == b.strides() && a.dtype() == b.dtype();
}

struct ConvertArguments {
  std::string dir;
};

int convert_command(const ConvertArguments& arguments) {
  const Converted done = convert(arguments.dir);
  std::string text =
      done.path + ": " + app::thousands(done.tensors) + " tensors, " + app::thousands(done.numbers) + " numbers";
  if (done.copies > 0) text += "; " + app::thousands(done.copies) + " copies of tied tensors left out";
  if (done.recomputed > 0) text += "; " + app::thousands(done.recomputed) + " tables of positions left out";
  app::print(text + "\n");
  return app::kOk;
}

}  // namespace

Converted convert(const std::string& dir) {
  namespace fs = std::filesystem;
  const std::string from = (fs::path(dir) / "pytorch_model.bin").string();
  Converted done{.path = (fs::path(dir) / "model.safetensors").string()};
  std::error_code ignored;
  if (!fs::is_directory(dir, ignored)) throw Error(dir + " is not a folder; give one that has a pytorch_model.bin");
  if (fs::exists(done.path, ignored)) throw Error(done.path + " is there already; remove it to have it made anew");
  if (!fs::exists(from, ignored)) throw Error("there is no file " + from + " to convert");
  nn::NamedTensors kept;
  for (auto& [name, tensor] : nn::load_pickle(from)) {
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
    ++done.tensors;
    done.numbers += tensor.numel();
    kept.emplace_back(std::move(name), std::move(tensor));
  }
  if (kept.empty()) throw Error(from + " holds no tensors");
  nn::save_safetensors(done.path, kept, {{"format", "pt"}});
  return done;
}

void add_convert(app::Program& program) {
  CLI::App* command =
      program.heed.add_subcommand("convert", "Make model.safetensors of a model folder's pytorch_model.bin");
  auto a = std::make_shared<ConvertArguments>();
  command->add_option("DIR", a->dir, "A folder with a pytorch_model.bin")->required()->type_name(" ");
  command->footer(
      "Needed once for models that come with a pytorch_model.bin alone. A pickle is a program; this reads the tensors\n"
      "in it and refuses all else. The folder stays as it is but for the new file.\n\n"
      "Examples:\n"
      "  heed convert opus-mt-en-de\n"
      "  heed translate opus-mt-en-de < english.txt > german.txt");
  app::run_with(program, command, a, convert_command);
}

}  // namespace heed::translate
