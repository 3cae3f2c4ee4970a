"""Uses and trains the same ViT and SegFormer with Heed, transformers and ONNX Runtime in turns. bench/vision has the usage."""

import argparse
import os
import pathlib
import statistics
import subprocess
import tempfile
import time
import warnings

import numpy
import onnxruntime
import safetensors.torch
import torch
import transformers

class Workload:
    """A network with random weights, saved as a folder, and a batch of random pictures with their answers."""

    def __init__(self, title, side, batch, config, make):
        self.title, self.batch = title, batch
        self.scratch = tempfile.TemporaryDirectory()  # gone with this
        self.folder = pathlib.Path(self.scratch.name)
        torch.manual_seed(1)
        self.model = make(config)
        for value in self.model.parameters():
            if value.dim() > 1:  # transformers' own start, std 0.02, gives logits that hardly differ from each other
                torch.nn.init.normal_(value, std=0.05)
        self.model.save_pretrained(self.folder)
        self.pictures = torch.randn(batch, 3, side, side)
        shape = (batch, side, side) if config.model_type == "segformer" else (batch,)
        self.targets = torch.randint(0, config.num_labels, shape)
        self.data = self.folder / "data.safetensors"
        safetensors.torch.save_file({"pictures": self.pictures, "targets": self.targets}, self.data)


def vit(batch):
    # Without dropout, so that losses can be compared.
    config = transformers.ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536,
                                    image_size=224, patch_size=16, num_labels=1000)
    return Workload("ViT-S/16 at 224", 224, batch or 8, config, transformers.ViTForImageClassification)


def segformer(batch):
    # What SegformerConfig says of itself is B0; 150 classes are ADE20K's.
    config = transformers.SegformerConfig(num_labels=150, classifier_dropout_prob=0.0, drop_path_rate=0.0)
    return Workload("SegFormer-B0 at 512", 512, batch or 2, config, transformers.SegformerForSemanticSegmentation)


class Heed:
    trains = True

    def __init__(self, work, arguments, program, name):
        self.out = work.folder / f"{abs(hash(program))}.safetensors"
        self.process = subprocess.Popen([program, work.folder, work.data, self.out], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True,
                                        env=dict(os.environ, HEED_THREADS=str(arguments.threads)))
        self.name = f"{name} ({self.process.stdout.readline().strip()})"

    def order(self, text):
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} ended")
        return float(answer)

    def logits(self):
        self.order("logits")
        return safetensors.torch.load_file(self.out)["logits"]

    def infer(self, times):
        return self.order(f"infer {times}")

    def train(self, times):
        return self.order(f"train {times}")

    def fresh(self):
        self.order("fresh")

    def loss(self):
        return self.order("loss")


class Transformers:
    trains = True
    name = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"

    def __init__(self, work, arguments):
        torch.set_num_threads(arguments.threads)
        self.work = work
        self.fresh()

    def fresh(self):
        self.model = type(self.work.model).from_pretrained(self.work.folder, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0, fused=True)

    def logits(self):
        self.model.eval()
        with torch.inference_mode():
            return self.model(self.work.pictures).logits

    def infer(self, times):
        start = time.perf_counter()
        for _ in range(times):
            self.logits()
        return time.perf_counter() - start

    def train(self, times):
        self.model.train()
        start = time.perf_counter()
        for _ in range(times):
            loss = self.model(self.work.pictures, labels=self.work.targets).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.last = loss.item()
        return time.perf_counter() - start

    def loss(self):
        return self.last


class OnnxRuntime:
    trains = False
    name = f"ONNX Runtime {onnxruntime.__version__}"

    def __init__(self, work, arguments):
        class Logits(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = work.model.eval()

            def forward(self, pictures):
                return self.model(pictures).logits

        file = work.folder / "model.onnx"
        with warnings.catch_warnings(action="ignore"):  # of what it does for sizes other than these
            torch.onnx.export(Logits(), (work.pictures,), str(file), input_names=["pictures"], dynamo=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # while the others have their turn
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.pictures = work.pictures.numpy()

    def logits(self):
        return torch.from_numpy(numpy.asarray(self.session.run(None, {"pictures": self.pictures})[0]))

    def infer(self, times):
        start = time.perf_counter()
        for _ in range(times):
            self.session.run(None, {"pictures": self.pictures})
        return time.perf_counter() - start


def in_turns(programs, what, arguments):
    """Seconds a batch of each round, for each program."""
    once = {p.name: getattr(p, what)(1) for p in programs}  # warms up, too
    times = {p.name: max(1, round(arguments.seconds / min(once[p.name], getattr(p, what)(1)))) for p in programs}
    found = {p.name: [] for p in programs}
    for _ in range(arguments.rounds):
        for p in programs:
            found[p.name].append(getattr(p, what)(times[p.name]) / times[p.name])
    return found


def table(work, programs, what, arguments, remark):
    found = in_turns(programs, what, arguments)
    ours = statistics.median(found[programs[0].name])
    for p in programs:
        median = statistics.median(found[p.name])
        print(f"  {what:6}{p.name:76}{work.batch / median:10.2f}{max(found[p.name]) / min(found[p.name]):8.2f}"
              f"{median / ours:9.2f}x  {remark[p.name]}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["vit", "segformer"], action="append")
    parser.add_argument("--batch", type=int, help="pictures in a batch; 8 and 2")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3, help="of a turn, about")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    print(f"{arguments.threads} threads, {arguments.rounds} rounds in turns, load {os.getloadavg()[0]:.1f}")
    for make in [{"vit": vit, "segformer": segformer}[m] for m in arguments.model or ["vit", "segformer"]]:
        work = make(arguments.batch)
        programs = [Heed(work, arguments, os.environ["HEED"], "Heed")]
        if os.environ.get("HEED_ON_WHEEL"):
            programs.append(Heed(work, arguments, os.environ["HEED_ON_WHEEL"], "Heed on the wheel's"))
        programs += [Transformers(work, arguments), OnnxRuntime(work, arguments)]
        truth = work.model.double().eval()
        with torch.inference_mode():
            truth = truth(work.pictures.double()).logits
        print(f"\n{work.title + ', batches of ' + str(work.batch):84}{'pictures/s':>10}{'spread':>8}{'Heed is':>10}  checked")
        errors = {p.name: f"logits off by {(p.logits().double() - truth).abs().max() / truth.abs().max():.0e}"
                  for p in programs}
        table(work, programs, "infer", arguments, errors)
        trained = [p for p in programs if p.trains]
        losses = {}
        for p in trained:
            p.fresh()
            p.train(5)
            losses[p.name] = f"loss after 5 steps {p.loss():.4f}"
        table(work, trained, "train", arguments, losses)


if __name__ == "__main__":
    main()
