// Where pictures with masks come from before a training, where there are none: composed.
#include "apps/segment/scenes_command.h"

#include <memory>
#include <string>

#include "apps/pictures/datasets.h"
#include "apps/progress.h"
#include "apps/segment/scenes.h"
#include "apps/terminal.h"

namespace heed::segment {
namespace {

using app::thousands;

struct ScenesArguments {
  ScenesOptions options;
  std::string classes;
};

int scenes_command(const ScenesArguments& arguments) {
  ScenesOptions options = arguments.options;
  if (!arguments.classes.empty()) {
    for (const pictures::Class& known : pictures::read_classes(arguments.classes).classes) {
      options.classes.push_back(known.name);
    }
  }
  app::Progress bar("Composing");
  write_scenes(options, [&](int64_t done) {
    bar.update([&] {
      return app::ProgressState{static_cast<double>(done) / static_cast<double>(options.count + options.test),
                                {thousands(done) + " scenes"}};
    });
  });
  bar.done(thousands(options.count) + " scenes to train with" +
           (options.test > 0 ? " and " + thousands(options.test) + " to measure with" : "") + " in " + options.out);
  return app::kOk;
}

}  // namespace

void add_scenes_command(app::Program& program) {
  CLI::App* command =
      program.data.add_subcommand("scenes", "Compose pictures with masks, of clothes on cluttered grounds");
  auto a = std::make_shared<ScenesArguments>();
  ScenesOptions& o = a->options;
  command->add_option("--out", o.out, "The folder they go to; new or empty")->required()->type_name("DIR");
  const auto number = [&](const char* name, auto& value, double low, double high, const char* what) {
    command->add_option(name, value, what)->type_name("N")->check(app::between(low, high))->capture_default_str();
  };
  number("--count", o.count, 1, 1e6, "Scenes to train with, in images and masks");
  number("--test", o.test, 0, 1e6, "Scenes to measure with, in test-images and test-masks");
  number("--size", o.size, 32, 1024, "Pixels of a scene, both ways; the items grow with it");
  number("--seed", o.seed, 0, 1.8e19, "The same seed gives the same scenes");
  command->add_option("--from", o.from, "A folder with IDX files of grey pictures, train and t10k")
      ->type_name("DIR")
      ->capture_default_str();
  command
      ->add_option("--classes", a->classes, "The names of the labels in --from, one a line; without it Fashion-MNIST's")
      ->type_name("FILE");
  command->footer(
      "Each scene has 2 to 5 items of Fashion-MNIST (Debian's package dataset-fashion-mnist), tinted, scaled and "
      "partly\n"
      "over each other. Scenes to train with are made of its pictures train, those to measure with of its t10k.\n\n"
      "Example:\n"
      "  heed data scenes --out scenes --count 4000 --test 500\n"
      "  heed train segment --images scenes/images --masks scenes/masks --classes scenes/classes.txt --out model");
  app::run_with(program, command, a, scenes_command);
}

}  // namespace heed::segment
