"""Translates the same sentences with Heed, transformers and CTranslate2 in turns. bench/translation has the usage."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import ctranslate2
import sentencepiece
import torch
import transformers
from ctranslate2.converters.transformers import BartLoader, MarianMTLoader, register_loader


class Text:
    """Sentences to ids and back, as the checkpoint says, so that no peer is charged for its tokenizer."""

    def __init__(self, folder):
        self.config = json.loads((folder / "config.json").read_text())
        self.source = sentencepiece.SentencePieceProcessor(model_file=str(folder / "source.spm"))
        vocab = folder / "vocab.json"
        if vocab.exists():
            self.ids = json.loads(vocab.read_text())
        else:
            self.ids = {self.source.id_to_piece(i): i for i in range(self.source.get_piece_size())}
        self.pieces = {i: piece for piece, i in self.ids.items()}
        self.eos, self.pad = self.config["eos_token_id"], self.config["pad_token_id"]

    def encode(self, line):
        text = line.lower() if self.config.get("do_lower_case") else line
        pieces = self.source.encode(text, out_type=str)
        return [self.ids.get(piece, self.ids["<unk>"]) for piece in pieces] + [self.eos]


class Heed:
    name = "Heed"

    def __init__(self, folder, lines, arguments):
        self.folder, self.arguments = folder, arguments
        self.scratch = pathlib.Path(tempfile.mkdtemp())
        (self.scratch / "source").write_text("".join(line + "\n" for line in lines))

    def run(self, *command):
        environment = dict(os.environ, HEED_THREADS=str(self.arguments.threads))
        done = subprocess.run([os.environ["HEED"], *map(str, command)], capture_output=True, text=True,
                              env=environment, stdin=open(self.scratch / "source"))
        if done.returncode:
            raise SystemExit(f"heed failed: {done.stderr.strip()}")
        return done.stdout

    def tokens(self):
        file = self.scratch / "attention.json"
        self.run("translate", self.folder, "--beam", self.arguments.beam, "--attention", file)
        return [entry["target"] for entry in json.loads(file.read_text())]

    def seconds(self):
        source = self.scratch / "source"
        # eval times the translating alone, as the others are timed: no loading, no process.
        out = self.run("eval", "translate", self.folder, "--source", source, "--target", source,
                       "--beam", self.arguments.beam, "--json")
        return json.loads(out)["seconds"]


class Transformers:
    name = f"transformers {transformers.__version__}, PyTorch {torch.__version__}"

    def __init__(self, folder, lines, arguments):
        torch.set_num_threads(arguments.threads)
        transformers.logging.set_verbosity_error()
        self.text, self.arguments = Text(folder), arguments
        self.model = transformers.MarianMTModel.from_pretrained(folder, dtype=torch.float32).eval()
        ids = [self.text.encode(line) for line in lines]
        self.order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        self.batches = []
        for at in range(0, len(ids), arguments.batch):
            rows = [ids[i] for i in self.order[at:at + arguments.batch]]
            width = max(map(len, rows))
            self.batches.append((torch.tensor([row + [self.text.pad] * (width - len(row)) for row in rows]),
                                 torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])))

    def generate(self):
        for ids, mask in self.batches:
            with torch.inference_mode():
                yield self.model.generate(input_ids=ids, attention_mask=mask, num_beams=self.arguments.beam,
                                          length_penalty=1.0, max_new_tokens=256, early_stopping=False)

    def tokens(self):
        rows = [row for batch in self.generate() for row in batch.tolist()]
        found = [None] * len(rows)
        for i, row in zip(self.order, rows):
            row = row[1:]
            if self.text.eos in row:
                row = row[:row.index(self.text.eos) + 1]
            found[i] = [self.text.pieces[token] for token in row]
        return found

    def seconds(self):
        start = time.perf_counter()
        for _ in self.generate():
            pass
        return time.perf_counter() - start


class StartTokenLoader(MarianMTLoader):
    """For models that start the decoder with a token that has an embedding, as Heed's do: CTranslate2's own loader takes
    every Marian model to start from zeros with <pad> as the last piece. What must never be said is suppressed below."""

    def get_vocabulary(self, model, tokenizer):
        return BartLoader.get_vocabulary(self, model, tokenizer)

    def set_config(self, config, model, tokenizer):
        super().set_config(config, model, tokenizer)
        config.decoder_start_token = tokenizer.convert_ids_to_tokens(model.config.decoder_start_token_id)

    def set_decoder(self, spec, decoder):
        super().set_decoder(spec, decoder)
        spec.start_from_zero_embedding = False

    def _remove_pad_weights(self, spec):
        pass


class CTranslate2:
    name = f"CTranslate2 {ctranslate2.__version__}"

    def __init__(self, folder, lines, arguments, compute_type="float32", workers=1):
        self.text, self.arguments = Text(folder), arguments
        target = tempfile.mkdtemp() + "/ct2"
        if self.text.config["decoder_start_token_id"] != self.text.pad:
            register_loader("MarianConfig")(StartTokenLoader)
        self.never = [[self.text.pieces[i]] for i in {self.text.pad, self.text.config["decoder_start_token_id"]}]
        ctranslate2.converters.TransformersConverter(str(folder)).convert(target)
        self.translator = ctranslate2.Translator(target, device="cpu", inter_threads=workers,
                                                 intra_threads=arguments.threads // workers, compute_type=compute_type)
        self.lines = [[self.text.pieces[i] for i in self.text.encode(line)] for line in lines]

    def translate(self):
        return self.translator.translate_batch(self.lines, beam_size=self.arguments.beam, length_penalty=1.0,
                                               max_decoding_length=256, max_batch_size=self.arguments.batch,
                                               suppress_sequences=self.never)

    def tokens(self):
        return [result.hypotheses[0] + ["</s>"] for result in self.translate()]

    def seconds(self):
        start = time.perf_counter()
        self.translate()
        return time.perf_counter() - start


class CTranslate2Workers(CTranslate2):
    name = CTranslate2.name + ", a thread for each batch"

    def __init__(self, folder, lines, arguments):
        super().__init__(folder, lines, arguments, workers=arguments.threads)


class CTranslate2Int8(CTranslate2):
    name = CTranslate2Workers.name + ", int8"

    def __init__(self, folder, lines, arguments):
        super().__init__(folder, lines, arguments, "int8", arguments.threads)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("--sentences", type=int, default=500)
    parser.add_argument("--beam", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32, help="sentences in a batch of the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    lines = [line for line in arguments.source.read_text().splitlines() if line.strip()][:arguments.sentences]

    programs = []
    for make in (Heed, Transformers, CTranslate2, CTranslate2Workers, CTranslate2Int8):
        try:
            programs.append(make(arguments.model, lines, arguments))
        except Exception as error:  # a peer that cannot read the model costs only its own row
            print(f"{make.name}: {error}")
    tokens = {program.name: program.tokens() for program in programs}  # warms up, too
    times = {program.name: [] for program in programs}
    for _ in range(arguments.rounds):
        for program in programs:
            times[program.name].append(program.seconds())

    ours = statistics.median(times[Heed.name])
    print(f"{len(lines)} sentences, beam {arguments.beam}, {arguments.threads} threads, {arguments.rounds} rounds in turns, "
          f"load {os.getloadavg()[0]:.1f}")
    print(f"{'':52}{'sentences/s':>12}{'spread':>8}{'Heed is':>10}{'same tokens':>14}")
    for program in programs:
        of = times[program.name]
        median = statistics.median(of)
        same = sum(a == b for a, b in zip(tokens[Heed.name], tokens[program.name]))
        print(f"{program.name:52}{len(lines) / median:12.1f}{max(of) / min(of):8.2f}{median / ours:9.2f}x"
              f"{same:7} / {len(lines)}")


if __name__ == "__main__":
    main()
