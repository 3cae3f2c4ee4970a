// The segment task's commands: arguments in, words and exit codes out.
#include "apps/segment/commands.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "apps/output.h"
#include "apps/pictures/command.h"
#include "apps/pictures/datasets.h"
#include "apps/pictures/overlay.h"
#include "apps/pictures/picture.h"
#include "apps/processes.h"
#include "apps/segment/colours.h"
#include "apps/segment/data.h"
#include "apps/segment/infer.h"
#include "apps/segment/measure.h"
#include "apps/segment/model.h"
#include "apps/terminal.h"
#include "apps/training_command.h"
#include "libtorch/files.h"
#include "libtorch/processes.h"

namespace heed::segment {
namespace {

namespace fs = std::filesystem;
using app::between;
using app::fixed;
using app::percent;
using app::say;
using app::thousands;
using app::UsageError;
using nlohmann::json;
using pictures::Labels;
using pictures::Picture;

std::string dump(const nlohmann::ordered_json& j, int indent) {
  return j.dump(indent, ' ', false, json::error_handler_t::replace) + "\n";
}

// What masks hold: the classes' values where they are numbered, so that a mask can be laid beside those it was learned
// from, or, where they are painted, their places with their colours as palette.
void write_mask(const std::string& path, const Labels& labels, const pictures::Classes& classes) {
  const std::vector<pictures::Colour> colours = palette_of(classes);
  const bool by_value = !classes.painted() && std::all_of(classes.classes.begin(), classes.classes.end(),
                                                          [](const pictures::Class& c) { return c.value < 256; });
  if (!by_value) return pictures::write_labels(path, labels, colours);
  std::vector<pictures::Colour> palette(256);
  for (size_t i = 0; i < colours.size(); ++i) palette[static_cast<size_t>(classes.classes[i].value)] = colours[i];
  Labels values = labels;
  for (uint16_t& value : values.values) value = static_cast<uint16_t>(classes.classes[value].value);
  pictures::write_labels(path, values, palette);
}

// ---- heed train segment ----

struct TrainArguments {
  std::string images, masks, classes;
  TrainOptions options;
  int64_t shorter_side = DataOptions{}.shorter_side;
  bool grey = false, fresh = false, new_network = false;
  app::ProcessArguments processes;
};

DataOptions data_options(const TrainArguments& a) {
  DataOptions o;
  o.shorter_side = a.shorter_side;
  if (a.grey) o.channels = 1;
  std::shared_ptr<Model> model;
  if (!a.options.from.empty()) {
    model = load_model(a.options.from);
    o.channels = model->channels();
  }
  o.classes = a.classes.empty() ? model->classes() : pictures::read_classes(a.classes);
  return o;
}

int train_command(const TrainArguments& arguments) {
  TrainOptions options = arguments.options;
  options.resume = !arguments.fresh;
  if (options.freeze_backbone && options.from.empty()) {
    throw UsageError("--freeze-backbone needs --from, the folder of a model that has learned something");
  }
  if (!options.from.empty() && arguments.new_network) {
    throw UsageError("--arch, --width, --depth, --stem, --dropout and --grey are for a new model; --from has its own");
  }
  if (options.from.empty() && arguments.classes.empty()) {
    throw UsageError("a new model needs --classes, a file that lists the classes");
  }
  app::check(arguments.processes, {});

  return app::with_processes(arguments.processes, [&](nn::Processes* group) {
    options.processes = group;
    const bool quiet = group != nullptr && group->rank() > 0;
    MaskedSet set = read_data(arguments.images, arguments.masks, data_options(arguments));
    if (quiet) return train(std::move(set), options).interrupted ? app::kInterrupted : app::kOk;

    for (const std::string& note : set.notes) say(note);
    app::Progress bar("Training");
    const TrainResult result = train(std::move(set), options, show_training(bar));
    for (const std::string& note : result.notes) bar.note(note);
    bar.done(training_summary(result, options));
    return result.interrupted ? app::kInterrupted : app::kOk;
  });
}

void add_train(app::Program& program) {
  CLI::App* command = program.train.add_subcommand("segment", "Train a network that gives each pixel its class");
  auto a = std::make_shared<TrainArguments>();
  TrainOptions& o = a->options;
  command->add_option("--images", a->images, "The folder of the pictures")->required()->type_name("DIR");
  command->add_option("--masks", a->masks, "The folder of their masks, under the same names")
      ->required()
      ->type_name("DIR");
  command->add_option("--classes", a->classes, "The file that lists the classes; without it --from's")
      ->type_name("FILE");
  command->add_option("--out", o.out, "The model's folder; made if it is not there")->required()->type_name("DIR");

  const auto number = [&](const char* name, auto& value, double low, double high, const char* what, const char* group) {
    return command->add_option(name, value, what)
        ->type_name("N")
        ->check(between(low, high))
        ->capture_default_str()
        ->group(group);
  };
  app::add_stop_options(command, o, "pictures");

  const char* model = "Model";
  NetworkOptions& n = o.network;
  std::vector<CLI::Option*> of_new = {
      command
          ->add_option("--arch", n.arch, "unet-ag (U-Net with attention gates), unet (the same without) or segformer")
          ->check(CLI::IsMember({"unet-ag", "unet", "segformer"}))
          ->type_name("NAME")
          ->capture_default_str()
          ->group(model),
      number("--width", n.width, 0, 65536, "unet: channels of the first level; segformer: of the first stage; 0: 32",
             model),
      number("--depth", n.depth, 0, 1024, "unet: levels; segformer: blocks of each stage; 0: 4 and 2", model),
      command->add_option("--stem", n.stem, "unet: its first level has a 1st, 2nd or 4th of the picture's sides")
          ->check(CLI::IsMember({1, 2, 4}))
          ->type_name("N")
          ->capture_default_str()
          ->group(model),
      number("--dropout", n.dropout, 0, 0.99, "Share of activations dropped before the classifier, in training", model),
      command->add_flag("--grey", a->grey, "Learn from pictures without colour")->group(model)};
  command->add_option("--from", o.from, "Go on from this model, with a new head where the classes are others")
      ->type_name("DIR")
      ->group(model);
  command->add_flag("--freeze-backbone", o.freeze_backbone, "with --from: only the head learns; for few pictures")
      ->group(model);

  const char* changes = "Changes at random";
  number("--crop-height", o.augmentation.height, 0, 4096,
         "Pixels of the part that is taken of a picture; 0: the smallest picture's, at most 512", changes);
  number("--crop-width", o.augmentation.width, 0, 4096, "The same for its width", changes);
  number("--scale", o.augmentation.scale, 0, 4, "Pictures are enlarged by up to 1 + N, or made smaller", changes);
  command->add_flag("--flip,!--no-flip", o.augmentation.flip, "Mirror every second picture, left to right")
      ->group(changes);
  command->add_flag("--flip-vertical", o.augmentation.flip_vertical, "and top to bottom, as under a microscope")
      ->group(changes);
  number("--colour", o.augmentation.colour, 0, 0.99, "Brightness, contrast and saturation change by up to this share",
         changes);
  number("--noise", o.augmentation.noise, 0, 1,
         "Every second picture gets noise, of a standard deviation of up to this share of white", changes);

  const char* training = "Training";
  number("--balance", o.balance, 0, 1, "Weighs classes by their share of the pixels to the power of -N; 0: not",
         training);
  number("--batch", o.batch, 1, 1e6, "Pictures in a batch", training);
  number("--lr", o.learning_rate, 0, 100,
         "Peak learning rate of AdamW; 0: 0.002, with --from 0.0002, with --freeze-backbone 0.02", training);
  number("--valid-pictures", o.valid_pictures, 1, app::kAnyCount, "Pictures held out to validate with, at most a tenth",
         training);
  number("--shorter-side", a->shorter_side, 16, 8192, "Larger pictures are made smaller, to this shorter side",
         training);
  app::add_loop_options(command, o, a->fresh);
  app::add_process_options(command, a->processes);
  command->footer(
      "A picture's mask has its name and its size: a PNG whose numbers are classes, or one that is painted. --classes\n"
      "is a file with a class on each line, and behind tabs, where wanted, its colour (#rrggbb) for painted masks,\n"
      "\"value 255\" for another number than the line's, counted from 0, and \"ignored\" for what shall not count. "
      "Pairs\n"
      "that cannot be read are named and left out; a mask with other values or of another size is an error.\n\n" +
      std::string(app::kTrainingHelp) +
      " It is in\n"
      "Hugging Face's layout, with classes.txt beside; --from also takes their SegFormers.\n\n" +
      std::string(app::kProcessHelp) +
      "\n\n"
      "Examples:\n"
      "  heed train segment --images photos --masks masks --classes classes.txt --out model --minutes 60\n"
      "  heed train segment --images cells --masks masks --classes classes.txt --grey --flip-vertical --out model "
      "--epochs 100\n"
      "  heed segment model picture.jpg --overlay-out overlays");
  command->callback([&program, a, of_new] {
    a->new_network = std::any_of(of_new.begin(), of_new.end(), [](const auto* option) { return option->count() > 0; });
    program.chosen = [a] { return train_command(*a); };
  });
}

// ---- heed segment ----

struct SegmentArguments {
  std::vector<std::string> files;  // the model's folder may be before them
  std::string masks, overlays, attention;
  InferOptions infer;
  bool json = false;
};

int segment_command(const SegmentArguments& given) {
  SegmentArguments arguments = given;
  const std::string dir = pictures::take_model(arguments.files, "nuclei", "segment");
  const std::shared_ptr<Model> model = load_model(dir);
  arguments.infer.attention = !arguments.attention.empty();
  if (arguments.infer.attention && !model->has_attention()) {
    throw Error(dir + " holds a network without attention; --attention-out is for unet-ag and segformer");
  }
  for (const std::string& folder : {arguments.masks, arguments.overlays, arguments.attention}) {
    if (!folder.empty()) nn::make_folder(folder);
  }
  pictures::Names names;
  return pictures::each_picture(
      arguments.files, model->channels(), [&](const std::string& file, const Picture& picture) {
        const Segmented answer = segment(*model, picture, 0, 0, arguments.infer);
        const std::string name = names.of(file);
        nlohmann::ordered_json line{{"picture", file}};
        if (!arguments.masks.empty()) {
          line["mask"] = (fs::path(arguments.masks) / (name + ".png")).string();
          write_mask(line["mask"], answer.labels, model->classes());
        }
        if (!arguments.overlays.empty()) {
          line["overlay"] = (fs::path(arguments.overlays) / (name + ".overlay.png")).string();
          pictures::write_png(line["overlay"], overlay_of(picture, answer.labels, model->classes()));
        }
        for (const AttentionMap& map : answer.maps) {
          const std::string path = (fs::path(arguments.attention) / (name + "." + map.name + ".png")).string();
          pictures::write_png(path, pictures::heat_overlay(picture, map.map[0]));
          line["attention"].push_back(path);
        }

        std::vector<std::pair<double, size_t>> shares;
        for (size_t i = 0; i < model->classes().classes.size(); ++i) shares.push_back({0, i});
        for (const uint16_t label : answer.labels.values) shares[label].first += 1;
        std::stable_sort(shares.begin(), shares.end(), [](const auto& x, const auto& y) { return x.first > y.first; });
        std::string text = app::printable(file) + "\n";
        auto classes = nlohmann::ordered_json::array();
        for (const auto& [pixels, label] : shares) {
          const double share = pixels / static_cast<double>(answer.labels.values.size());
          const std::string& class_name = model->classes().classes[label].name;
          if (pixels > 0) text += app::pad_left(percent(share, 1), 8) + "  " + app::printable(class_name) + "\n";
          classes.push_back({{"class", class_name}, {"share", share}});
        }
        line["classes"] = classes;
        app::print(arguments.json ? dump(line, -1) : text);
      });
}

void add_segment(app::Program& program) {
  CLI::App* command = program.heed.add_subcommand("segment", "Give each pixel of pictures its class, with a model");
  auto a = std::make_shared<SegmentArguments>();
  command
      ->add_option("PICTURE", a->files,
                   "Pictures: PNG, JPEG, WebP or BMP; before them, unless models/nuclei shall tell, a model's folder")
      ->required()
      ->type_name(" ");
  command->add_option("--masks-out", a->masks, "Write to this folder each pixel's class, as NAME.png")
      ->type_name("DIR");
  command
      ->add_option("--overlay-out", a->overlays,
                   "Write to this folder the classes over the picture, but for one called background")
      ->type_name("DIR");
  command->add_option("--attention-out", a->attention, "Write to this folder where the model looked, a file a map")
      ->type_name("DIR");
  command->add_option("--tile", a->infer.tile, "Larger pictures are cut into tiles of this side")
      ->check(between(16, 16384))
      ->type_name("N")
      ->capture_default_str();
  command->add_option("--overlap", a->infer.overlap, "Pixels that neighbouring tiles share")
      ->check(between(0, 8192))
      ->type_name("N")
      ->capture_default_str();
  command->add_flag("--json", a->json, "Print a JSON object on a line for each picture");
  command->footer(
      "Prints the share of each class. Masks are PNGs of the picture's size, whose numbers are the classes' as the "
      "masks\nit was trained with have them, and whose palette shows them in colours; of painted classes the numbers "
      "count\nfrom 0. The maps are what a U-Net's attention gates let through, gate1 being the finest, or how much "
      "attention\nthe places of a SegFormer's stages received; the lighter the more. Models are ours, or SegFormers of "
      "Hugging Face.\n\n"
      "Pictures that cannot be read are named on standard error; the exit code is then 1.\n\n"
      "Examples:\n"
      "  heed segment cells.png --overlay-out overlays\n"
      "  heed segment model photos/*.jpg --masks-out masks --json > shares.jsonl\n"
      "  heed segment model photo.jpg --attention-out maps");
  app::run_with(program, command, a, segment_command);
}

// ---- heed eval segment ----

struct EvalArguments {
  std::string dir, images, masks, classes, out;
  InferOptions infer;
  bool json = false;
};

// Whether two sizes are of one shape, give or take a pixel's rounding.
bool same_shape(const Picture& picture, const Labels& mask) {
  const double across = static_cast<double>(picture.width) * static_cast<double>(mask.height);
  const double down = static_cast<double>(picture.height) * static_cast<double>(mask.width);
  return std::abs(across - down) <= static_cast<double>(std::max(picture.width, picture.height));
}

int eval_command(const EvalArguments& arguments) {
  const std::shared_ptr<Model> model = load_model(arguments.dir);
  const pictures::Classes classes =
      arguments.classes.empty() ? model->classes() : pictures::read_classes(arguments.classes);
  if (static_cast<int64_t>(classes.classes.size()) != model->count()) {
    throw Error(arguments.classes + " has " + std::to_string(classes.classes.size()) + " classes and the model " +
                std::to_string(model->count()) + "; they must be the same, in the same order");
  }
  const pictures::MaskPairs found = pictures::find_mask_pairs(arguments.images, arguments.masks);
  say(found.summary());
  if (!arguments.out.empty()) nn::make_folder(arguments.out);
  Agreement agreement(model->count());
  pictures::Names names;
  app::Progress bar("Measuring");
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(); };
  std::vector<pictures::Skipped> skipped;
  int64_t done = 0;
  for (const pictures::MaskPair& pair : found.pairs) {
    Picture picture;
    try {
      picture = pictures::read_picture(pair.picture, {.channels = model->channels()});
    } catch (const Error& error) {
      skipped.push_back({pair.picture, error.what()});
      continue;
    }
    const Labels mask = pictures::read_mask(pair.mask, classes);
    if (!same_shape(picture, mask)) {
      throw Error(pair.picture + " has " + std::to_string(picture.width) + " x " + std::to_string(picture.height) +
                  " pixels, and its mask " + pair.mask + " has " + std::to_string(mask.width) + " x " +
                  std::to_string(mask.height) + ", which is another shape; crop one of them to the other's");
    }
    const Segmented answer = segment(*model, picture, mask.height, mask.width, arguments.infer);
    agreement.add(answer.labels, mask);
    if (!arguments.out.empty()) {
      write_mask((fs::path(arguments.out) / (names.of(pair.mask) + ".png")).string(), answer.labels, classes);
    }
    ++done;
    bar.update([&] {
      const double part = static_cast<double>(done) / static_cast<double>(found.pairs.size());
      return app::ProgressState{part, {thousands(done) + " pictures"}, elapsed() * (1 / part - 1)};
    });
  }
  if (!skipped.empty()) say(pictures::summary(skipped));
  if (done == 0) throw Error("no picture could be read");
  const double seconds = elapsed();
  bar.done(thousands(done) + " pictures in " + app::duration(seconds) + ", " +
           fixed(static_cast<double>(done) / std::max(seconds, 1e-9), 1) + " a second");
  if (arguments.json) {
    json result = agreement.to_json(classes);
    result["pictures"] = done;
    result["seconds"] = seconds;
    app::print(dump(result, 2));
    return app::kOk;
  }
  size_t widest = 14;
  for (const pictures::Class& c : classes.classes) widest = std::max(widest, c.name.size());
  const auto row = [&](const std::string& name, const std::string& iou, const std::string& dice) {
    return app::pad_right(app::printable(name), widest) + app::pad_left(iou, 9) + app::pad_left(dice, 9) + "\n";
  };
  std::string table = row("", "IoU", "Dice");
  table += row("mean", percent(agreement.mean_iou()), percent(agreement.mean_dice()));
  for (int64_t i = 0; i < model->count(); ++i) {
    table += row(classes.classes[static_cast<size_t>(i)].name, percent(agreement.iou(i)), percent(agreement.dice(i)));
  }
  app::print(table + row("pixel accuracy", percent(agreement.accuracy()), ""));
  return app::kOk;
}

void add_eval(app::Program& program) {
  CLI::App* command = program.eval.add_subcommand("segment", "Measure a network on pictures with masks");
  auto a = std::make_shared<EvalArguments>();
  command->add_option("DIR", a->dir, "The folder of a trained model")->required()->type_name(" ");
  command->add_option("--images", a->images, "The folder of the pictures")->required()->type_name("DIR");
  command->add_option("--masks", a->masks, "The folder of their masks, under the same names")
      ->required()
      ->type_name("DIR");
  command->add_option("--classes", a->classes, "How these masks hold the classes, if not as the model's did")
      ->type_name("FILE");
  command->add_option("--masks-out", a->out, "Write the answers to this folder, too")->type_name("DIR");
  command->add_flag("--json", a->json, "Print the numbers as JSON");
  command->footer(
      "IoU is the intersection of a class's pixels in answer and mask over their union, all pictures together; Dice is "
      "twice\nthe intersection over the sum of the two. The mean is over the classes that occur. Ignored pixels do not "
      "count.\nA mask may be larger or smaller than its picture, if it has the same shape: answers are made at the "
      "mask's size.\n\n"
      "Examples:\n"
      "  heed eval segment model --images test --masks test-masks\n"
      "  heed eval segment model --images test --masks test-masks --json --masks-out answers");
  app::run_with(program, command, a, eval_command);
}

}  // namespace

std::function<void(const TrainProgress&)> show_training(app::Progress& bar) {
  return [&bar](const TrainProgress& p) {
    app::show(bar, p.loop, p.loop.validated != nullptr ? "  mean IoU " + percent(p.valid_mean_iou) : "", "pictures");
  };
}

std::string training_summary(const TrainResult& result, const TrainOptions& options) {
  const std::string learning = result.learning < result.parameters ? thousands(result.learning) + " of them, " : "";
  return app::training_summary(
      result, options, learning + thousands(result.train_pictures) + " pictures",
      ", mean IoU " + percent(result.valid_mean_iou) + " on " + thousands(result.validation_pictures) + " held out");
}

void add_commands(app::Program& program) {
  add_train(program);
  add_segment(program);
  add_eval(program);
}

}  // namespace heed::segment
