// The classify task's commands: arguments in, words and exit codes out.
#include "apps/classify/commands.h"

#include <torch/torch.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <system_error>

#include "apps/classify/data.h"
#include "apps/classify/measure.h"
#include "apps/classify/model.h"
#include "apps/classify/train.h"
#include "apps/output.h"
#include "apps/pictures/command.h"
#include "apps/pictures/datasets.h"
#include "apps/pictures/overlay.h"
#include "apps/pictures/picture.h"
#include "apps/pictures/resize.h"
#include "apps/processes.h"
#include "apps/progress.h"
#include "apps/terminal.h"
#include "apps/training_command.h"
#include "libtorch/files.h"
#include "libtorch/processes.h"

namespace heed::classify {
namespace {

namespace fs = std::filesystem;
using app::between;
using app::fixed;
using app::percent;
using app::say;
using app::thousands;
using app::UsageError;
using nlohmann::json;
using pictures::Picture;

std::string dump(const nlohmann::ordered_json& j, int indent) {
  return j.dump(indent, ' ', false, json::error_handler_t::replace) + "\n";
}

// A bar that counts pictures, for measure().
class Measuring {
 public:
  explicit Measuring(int64_t total) : total_(static_cast<double>(total)) {}

  void operator()(int64_t done) {
    bar_.update([&] {
      const double part = static_cast<double>(done), seconds = elapsed();
      return app::ProgressState{part / total_,
                                {thousands(done) + " pictures", fixed(part / std::max(seconds, 1e-9), 1) + "/s"},
                                done > 0 ? (total_ - part) * seconds / part : -1};
    });
  }
  double done() {
    const double seconds = elapsed();
    bar_.done(thousands(std::llround(total_)) + " pictures in " + app::duration(seconds) + ", " +
              fixed(total_ / std::max(seconds, 1e-9), 1) + " a second");
    return seconds;
  }

 private:
  double elapsed() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

  app::Progress bar_{"Measuring"};
  double total_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

// ---- heed train classify ----

struct TrainArguments {
  std::string data, test, classes;
  TrainOptions options;
  int64_t size = 0;
  bool grey = false, fresh = false, new_network = false;
  app::ProcessArguments processes;
};

DataOptions data_options(const TrainArguments& a) {
  DataOptions o;
  o.training = true;
  o.size = a.size;
  if (a.grey) o.channels = 1;
  if (!a.classes.empty()) {
    for (const pictures::Class& known : pictures::read_classes(a.classes).classes) o.names.push_back(known.name);
  }
  if (!a.options.from.empty()) {
    const std::shared_ptr<Model> model = load_model(a.options.from);
    o.channels = model->channels();
    o.preprocess = model->preprocess();
  }
  return o;
}

// What `heed eval classify` would say of the new model.
void test(const TrainArguments& a) {
  const std::string& folder = !a.test.empty() ? a.test : holds_idx(a.data, "t10k") ? a.data : "";
  if (folder.empty()) return;
  const std::shared_ptr<Model> model = load_model(a.options.out);
  const PictureSet set =
      read_data(folder, {.classes = model->labels(), .channels = model->channels(), .preprocess = model->preprocess()});
  Measuring bar(set.count());
  const Measured measured = measure(*model, set, [&](int64_t done) { bar(done); });
  bar.done();
  say("Accuracy on the " + thousands(set.count()) + " pictures of " + folder + (a.test.empty() ? " (t10k)" : "") +
      ", which the training has not seen: " + percent(measured.accuracy()));
}

int train_command(const TrainArguments& arguments) {
  TrainOptions options = arguments.options;
  options.resume = !arguments.fresh;
  if (options.freeze_backbone && options.from.empty()) {
    throw UsageError("--freeze-backbone needs --from, the folder of a model that has learned something");
  }
  if (!options.from.empty() && arguments.new_network) {
    throw UsageError(
        "--arch, --width, --depth, --patch, --dropout, --size and --grey are for a new model; --from has "
        "its own");
  }
  const bool idx = holds_idx(arguments.data, "train") || holds_idx(arguments.data, "t10k");
  if (!arguments.classes.empty() && !idx) {
    throw UsageError("--classes names the numbers of IDX files; in " + arguments.data +
                     " the folders' names are the classes");
  }
  std::error_code ignored;
  if (!arguments.test.empty() && !fs::is_directory(arguments.test, ignored)) {
    throw Error("there is no folder " + arguments.test);
  }
  app::check(arguments.processes, {});

  return app::with_processes(arguments.processes, [&](nn::Processes* group) {
    options.processes = group;
    const bool quiet = group != nullptr && group->rank() > 0;
    PictureSet set = read_data(arguments.data, data_options(arguments));
    if (quiet) return train(std::move(set), options).interrupted ? app::kInterrupted : app::kOk;

    for (const std::string& note : set.notes) say(note);
    app::Progress bar("Training");
    const TrainResult result = train(std::move(set), options, show_training(bar));
    for (const std::string& note : result.notes) bar.note(note);
    bar.done(training_summary(result, options));
    if (result.interrupted) return app::kInterrupted;
    test(arguments);
    return app::kOk;
  });
}

void add_train(app::Program& program) {
  CLI::App* command = program.train.add_subcommand("classify", "Train a classifier on labelled pictures");
  auto a = std::make_shared<TrainArguments>();
  TrainOptions& o = a->options;
  command->add_option("DATA", a->data, "A folder with a folder of pictures for each class, or with IDX files")
      ->required()
      ->type_name(" ");
  command->add_option("--out", o.out, "The model's folder; made if it is not there")->required()->type_name("DIR");
  command->add_option("--test", a->test, "Measure the finished model on this data, too; without it on IDX files' t10k")
      ->type_name("DATA");
  command->add_option("--classes", a->classes, "IDX files: the names of the classes, one a line")->type_name("FILE");

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
      command->add_option("--arch", n.arch, "cnn-cbam (residual network with CBAM), cnn (the same without) or vit")
          ->check(CLI::IsMember({"cnn-cbam", "cnn", "vit"}))
          ->type_name("NAME")
          ->capture_default_str()
          ->group(model),
      number("--width", n.width, 0, 65536,
             "cnn: channels of the first of three stages; vit: width of a token; 0: 32 and 192", model),
      number("--depth", n.depth, 0, 1024, "cnn: blocks of each stage; vit: layers; 0: 2 and 6", model),
      number("--patch", n.patch, 0, 65536, "vit: pixels of a patch, both ways; 0: 4, or 16 for pictures above 64",
             model),
      number("--dropout", n.dropout, 0, 0.99, "Share of activations dropped in training", model),
      number("--size", a->size, 0, 4096,
             "Pixels of the pictures, both ways; 0: IDX files' own, else what fits, at most 128", model),
      command->add_flag("--grey", a->grey, "Learn from pictures without colour")->group(model)};
  command->add_option("--from", o.from, "Go on from this model, with a new head where the classes are others")
      ->type_name("DIR")
      ->group(model);
  command->add_flag("--freeze-backbone", o.freeze_backbone, "with --from: only the head learns; for few pictures")
      ->group(model);

  const char* changes = "Changes at random";
  number("--crop", o.augmentation.crop, -1, 4096,
         "Pixels by which a picture is moved at most; -1: an eighth of its side", changes);
  command->add_flag("--flip,!--no-flip", o.augmentation.flip, "Mirror every second picture; --no-flip for writing")
      ->group(changes);
  number("--erase", o.augmentation.erase, 0, 1, "Share of pictures of which a rectangle is erased", changes);

  const char* training = "Training";
  number("--batch", o.batch, 1, 1e6, "Pictures in a batch", training);
  number("--lr", o.learning_rate, 0, 100,
         "Peak learning rate of AdamW; 0: 0.002, with --from 0.0002, with --freeze-backbone 0.02", training);
  number("--label-smoothing", o.label_smoothing, 0, 0.99, "Probability spread over the other classes", training);
  number("--valid-pictures", o.valid_pictures, 1, app::kAnyCount, "Pictures held out to validate with, at most a tenth",
         training);
  app::add_loop_options(command, o, a->fresh);
  app::add_process_options(command, a->processes);
  command->footer(
      "DATA is a folder whose folders are the classes, with PNG, JPEG, WebP or BMP files in them, at any depth; files\n"
      "that cannot be read are named and left out. Or it holds train-images-idx3-ubyte and train-labels-idx1-ubyte, "
      "also\nwith .gz, as MNIST and Fashion-MNIST do.\n\n" +
      std::string(app::kTrainingHelp) +
      " It is in\n"
      "Hugging Face's layout, and --from also takes their ViT and DeiT models.\n\n" +
      std::string(app::kProcessHelp) +
      "\n\n"
      "Examples:\n"
      "  heed train classify photos --out model --minutes 30\n"
      "  heed train classify /usr/share/datasets/fashion-mnist --arch cnn-cbam --out model --epochs 20\n"
      "  heed train classify fifty-photos --from model --freeze-backbone --out mine --epochs 30\n"
      "  heed classify model picture.jpg");
  command->callback([&program, a, of_new] {
    a->new_network = std::any_of(of_new.begin(), of_new.end(), [](const auto* option) { return option->count() > 0; });
    program.chosen = [a] { return train_command(*a); };
  });
}

// ---- heed classify ----

struct ClassifyArguments {
  std::string attention;
  std::vector<std::string> files;  // the model's folder may be before them
  int64_t top = 5;
  bool json = false;
};

// Small pictures are enlarged, so that a map over one can be seen: to this shorter side at least.
constexpr int64_t kShownSide = 224;

// The picture that the map covers: all of it, unless the model sees its middle only.
Picture shown(const Picture& picture, const pictures::Preprocess& preprocess) {
  Picture seen = preprocess.crop ? pictures::prepare(picture, preprocess) : picture;
  const int64_t side = std::min(seen.width, seen.height), times = (kShownSide + side - 1) / side;
  return times > 1 ? pictures::resize(seen, times * seen.width, times * seen.height, pictures::Filter::nearest) : seen;
}

int classify_command(const ClassifyArguments& given) {
  ClassifyArguments arguments = given;
  const std::string dir = pictures::take_model(arguments.files, "fashion", "classify");
  const std::shared_ptr<Model> model = load_model(dir);
  const bool wants_map = !arguments.attention.empty();
  if (wants_map) {
    if (!model->has_attention()) {
      throw Error(dir + " holds a network without attention; --attention-out is for cnn-cbam and vit");
    }
    nn::make_folder(arguments.attention);
  }
  const torch::NoGradGuard no_grad;
  const auto top = std::min(arguments.top, static_cast<int64_t>(model->labels().size()));
  pictures::Names names;
  return pictures::each_picture(
      arguments.files, model->channels(), [&](const std::string& file, const Picture& picture) {
        Picture prepared = pictures::prepare(picture, model->preprocess());
        const PictureSet one{.preprocess = model->preprocess(),
                             .channels = prepared.channels,
                             .height = prepared.height,
                             .width = prepared.width,
                             .bytes = std::move(prepared.bytes),
                             .labels = {0}};
        const int64_t row = 0;
        const Seen seen = model->forward(make_batch(one, {&row, 1}), wants_map);
        std::string overlay;
        if (wants_map) {
          overlay = (fs::path(arguments.attention) / (names.of(file) + ".attention.png")).string();
          pictures::write_png(overlay, pictures::heat_overlay(shown(picture, model->preprocess()), seen.attention[0]));
        }

        const auto [probabilities, places] = seen.logits[0].to(torch::kFloat64).softmax(0).topk(top);
        std::string text = app::printable(file) + "\n";
        auto answers = nlohmann::ordered_json::array();
        for (int64_t i = 0; i < top; ++i) {
          const double probability = probabilities[i].item<double>();
          const std::string& label = model->labels()[static_cast<size_t>(places[i].item<int64_t>())];
          text += app::pad_left(percent(probability, 1), 8) + "  " + app::printable(label) + "\n";
          answers.push_back({{"class", label}, {"probability", probability}});
        }
        nlohmann::ordered_json line{{"picture", file}, {"answers", answers}};
        if (wants_map) line["attention"] = overlay;
        app::print(arguments.json ? dump(line, -1) : text);
      });
}

void add_classify(app::Program& program) {
  CLI::App* command = program.heed.add_subcommand("classify", "Tell what is in pictures, with a trained model");
  auto a = std::make_shared<ClassifyArguments>();
  command
      ->add_option("PICTURE", a->files,
                   "Pictures: PNG, JPEG, WebP or BMP; before them, unless models/fashion shall tell, a model's folder")
      ->required()
      ->type_name(" ");
  command->add_option("--top", a->top, "How many classes to tell of a picture")
      ->type_name("N")
      ->check(between(1, 1e6))
      ->capture_default_str();
  command->add_flag("--json", a->json, "Print a JSON object on a line for each picture");
  command
      ->add_option("--attention-out", a->attention,
                   "Write to this folder where the model looked, as NAME.attention.png")
      ->type_name("DIR");
  command->footer(
      "The map over a picture is what CBAM's last spatial gate let through, or how much of each patch reached the\n"
      "answer of a Vision Transformer (attention rollout, Abnar and Zuidema 2020); the lighter the more, from the "
      "picture's\nsmallest value to its largest. Models are ours, or ViT and DeiT of Hugging Face.\n\n"
      "Pictures that cannot be read are named on standard error; the exit code is then 1.\n\n"
      "Examples:\n"
      "  heed classify shoe.png\n"
      "  heed classify model photo.jpg\n"
      "  heed classify model photos/*.jpg --json > answers.jsonl\n"
      "  heed classify model photo.jpg --attention-out maps");
  app::run_with(program, command, a, classify_command);
}

// ---- heed eval classify ----

struct EvalArguments {
  std::string dir, data;
  bool json = false;
};

int eval_command(const EvalArguments& arguments) {
  const std::shared_ptr<Model> model = load_model(arguments.dir);
  const PictureSet set = read_data(
      arguments.data, {.classes = model->labels(), .channels = model->channels(), .preprocess = model->preprocess()});
  for (const std::string& note : set.notes) say(note);
  Measuring bar(set.count());
  const Measured measured = measure(*model, set, [&](int64_t done) { bar(done); });
  const double seconds = bar.done();
  if (arguments.json) {
    json result = measured.to_json(model->labels());
    result["seconds"] = seconds;
    app::print(dump(result, 2));
    return app::kOk;
  }
  const auto row = [](const char* name, const std::string& value) {
    return app::pad_right(name, 18) + app::pad_left(value, 8) + "\n";
  };
  app::print(row("accuracy", percent(measured.accuracy())) +
             row("among the first 5",
                 percent(static_cast<double>(measured.among_five) / static_cast<double>(measured.pictures))) +
             row("loss", fixed(measured.loss / static_cast<double>(measured.pictures), 4)) +
             row("pictures", thousands(measured.pictures)));
  return app::kOk;
}

void add_eval(app::Program& program) {
  CLI::App* command = program.eval.add_subcommand("classify", "Measure a classifier on labelled pictures");
  auto a = std::make_shared<EvalArguments>();
  command->add_option("DIR", a->dir, "The folder of a trained model")->required()->type_name(" ");
  command
      ->add_option("DATA", a->data, "A folder with a folder for each class, or with IDX files, of which t10k is taken")
      ->required()
      ->type_name(" ");
  command->add_flag("--json", a->json,
                    "Print the numbers as JSON, with those of each class and who was taken for whom");
  command->footer(
      "Accuracy is the share of pictures whose class got the highest probability; the loss is the mean negative\n"
      "log-likelihood. In the JSON, answers[i][j] is how many pictures of class i were taken for class j.\n\n"
      "Examples:\n"
      "  heed eval classify model test-photos\n"
      "  heed eval classify model /usr/share/datasets/fashion-mnist --json");
  app::run_with(program, command, a, eval_command);
}

}  // namespace

std::function<void(const TrainProgress&)> show_training(app::Progress& bar) {
  return [&bar](const TrainProgress& p) {
    app::show(bar, p.loop, p.loop.validated != nullptr ? "  accuracy " + percent(p.valid_accuracy) : "", "pictures");
  };
}

std::string training_summary(const TrainResult& result, const TrainOptions& options) {
  const std::string learning = result.learning < result.parameters ? thousands(result.learning) + " of them, " : "";
  return app::training_summary(
      result, options, learning + thousands(result.train_pictures) + " pictures",
      ", accuracy " + percent(result.valid_accuracy) + " of " + thousands(result.validation_pictures) + " held out");
}

void add_commands(app::Program& program) {
  add_train(program);
  add_classify(program);
  add_eval(program);
}

}  // namespace heed::classify
