"""Makes tests/data/marian/: small Marian models as transformers writes them, with the logits and translations it computes.

    python3 -m venv /tmp/tf && /tmp/tf/bin/pip install torch transformers==5.24.0 sentencepiece safetensors
    /tmp/tf/bin/python tests/data/marian_goldens.py

Each folder is a model folder with two more files: goldens.safetensors (logits.N, float32, of source N and target N) and
goldens.json (these sources and targets; what generate() gives for them; text, ids and text again). The folders differ in
whatever differs between Marian models; tests/marian_test.cc loads each without Python.
"""
import io
import json
import pathlib
import shutil
import tempfile
import warnings

import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

warnings.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)
HERE = pathlib.Path(__file__).parent / "marian"

PAIRS = [("the dog runs", "der Hund läuft"), ("a cat sleeps", "eine Katze schläft"),
         ("the cat runs", "die Katze läuft"), ("a dog sleeps", "ein Hund schläft"),
         ("the man sees a dog", "der Mann sieht einen Hund"), ("a man sees the cat", "ein Mann sieht die Katze"),
         ("the dog sees the man", "der Hund sieht den Mann"), ("the man sleeps", "der Mann schläft")]
FRENCH = {"the dog runs": "le chien court", "a cat sleeps": "un chat dort", "the man sleeps": "l'homme dort"}


def spm(lines, path, size):
    made = io.BytesIO()  # with a name in place of it the file would hold that name
    # The identity keeps 240 KB of normalisation rules out of the file.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 4), model_writer=made, vocab_size=size, minloglevel=3,
        normalization_rule_name="identity", hard_vocab_limit=False, num_threads=1)
    path.write_bytes(made.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [model.id_to_piece(i) for i in range(model.get_piece_size()) if not model.is_control(i) and not model.is_unknown(i)]


def number(pieces, languages=()):
    """As the converter from Marian does: </s>, <unk>, pieces, <pad> last."""
    table = {"</s>": 0, "<unk>": 1}
    for piece in [*sorted(set(pieces)), *languages, "<pad>"]:
        table[piece] = len(table)
    return table


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer(folder, separate=False):
    german = [t for _, t in PAIRS] + list(FRENCH.values())
    source = spm([s for s, _ in PAIRS], folder / "source.spm", 34)
    target = spm(german, folder / "target.spm", 44)
    languages = [">>deu<<", ">>fra<<"]
    if separate:
        # One number for <pad>, as the model has one pad_token_id: the shorter table gets fillers before it.
        tables = [number(source, languages), number(target)]
        longest = max(map(len, tables))
        for table in tables:
            del table["<pad>"]
            while len(table) < longest - 1:
                table[f"<fill{len(table)}>"] = len(table)
            table["<pad>"] = len(table)
        # ... and the target gets more rows behind it.
        tables[1]["zzz"] = len(tables[1])
        write_json(folder / "vocab.json", tables[0])
        write_json(folder / "target_vocab.json", tables[1])
        write_json(folder / "tokenizer_config.json", {"separate_vocabs": True, "tokenizer_class": "MarianTokenizer"})
        return tables
    table = number(source + target, languages)
    write_json(folder / "vocab.json", table)
    write_json(folder / "tokenizer_config.json", {"source_lang": "en", "target_lang": "de", "separate_vocabs": False})
    return table, table


def read_tokenizer(folder):
    separate = (folder / "target_vocab.json").exists()
    return MarianTokenizer(
        source_spm=str(folder / "source.spm"), target_spm=str(folder / "target.spm"), vocab=str(folder / "vocab.json"),
        target_vocab_file=str(folder / "target_vocab.json") if separate else None, separate_vocabs=separate)


def config(**changes):
    return MarianConfig(**(dict(
        vocab_size=60, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40, pad_token_id=59,
        eos_token_id=0, forced_eos_token_id=0, decoder_start_token_id=59, activation_function="swish",
        scale_embedding=True, dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, attn_implementation="eager",
        init_std=0.5) | changes))


def random_model(seed, **changes):
    """No parameter is left where it would not be missed: biases not 0, norms not 1."""
    torch.manual_seed(seed)
    model = MarianMTModel(config(**changes)).eval()
    with torch.no_grad():
        for p in dict.fromkeys(model.parameters()):
            if p.requires_grad:
                p += 0.2 * torch.randn_like(p)
        model.final_logits_bias += torch.randn_like(model.final_logits_bias)
    return model


def rounded(model, dtype):
    """Weights as a file of this dtype holds them; the tables of positions are in no file."""
    model = model.to(dtype).float()
    for side in (model.model.encoder, model.model.decoder):
        side.embed_positions.weight.copy_(side.embed_positions.create_weight())
    return model


def trained_model(table, tok):
    torch.manual_seed(3)
    model = MarianMTModel(config(vocab_size=len(table), pad_token_id=table["<pad>"], init_std=0.2,
                                 decoder_start_token_id=table["<pad>"])).train()
    lines = [(">>deu<< " + s, t) for s, t in PAIRS] + PAIRS + [(">>fra<< " + s, t) for s, t in FRENCH.items()]
    batch = tok([s for s, _ in lines], text_target=[t for _, t in lines], return_tensors="pt", padding=True)
    labels = batch["labels"].masked_fill(batch["labels"] == tok.pad_token_id, -100)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.final_logits_bias += 0.3 * torch.randn_like(model.final_logits_bias)
        model.final_logits_bias[0, table["<pad>"]] = 0
        model.model.shared.weight[table["<pad>"]] = 0
    print(f"  trained to a loss of {loss.item():.3f}")
    return model.eval()


def random_ids(seed, vocab, special):
    generator = torch.Generator().manual_seed(seed)
    words = [i for i in range(vocab) if i not in special]
    return [[words[i] for i in torch.randint(len(words), (n,), generator=generator).tolist()] for n in (5, 1, 9, 3)]


def padded(rows, pad):
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def trimmed(row, eos, pad):
    row = row[1:]
    if eos in row:
        return row[: row.index(eos) + 1]
    while row and row[-1] == pad:
        row.pop()
    return row


def goldens(folder, model, sources, targets, searches, texts=()):
    model = model.float().eval()
    c = model.config
    sources = [s + [c.eos_token_id] for s in sources]
    targets = [[c.decoder_start_token_id] + t for t in targets]
    tensors = {}
    with torch.no_grad():
        for i, (s, t) in enumerate(zip(sources, targets)):
            tensors[f"logits.{i}"] = model(input_ids=torch.tensor([s]), decoder_input_ids=torch.tensor([t])).logits[0].clone()
    ids, mask = padded(sources, c.pad_token_id)
    generated = []
    for beam, penalty, length in searches:
        both = []
        for m in (model, model.double()):  # what rounding could turn is no golden
            out = m.generate(input_ids=ids, attention_mask=mask, num_beams=beam, length_penalty=penalty, max_length=length,
                             early_stopping=False, do_sample=False, return_dict_in_generate=True, output_scores=True)
            both.append([trimmed(r, c.eos_token_id, c.pad_token_id) for r in out.sequences.tolist()])
        model = model.float()
        assert both[0] == both[1], (folder.name, beam, penalty, length)
        scores = out.sequences_scores.tolist() if beam > 1 else None
        generated.append({"beam": beam, "length_penalty": penalty, "max_length": length, "ids": both[0], "scores": scores})
    save_file(tensors, folder / "goldens.safetensors")
    golden = {"sources": sources, "targets": targets, "generated": generated, "texts": list(texts)}
    write = json.dumps(golden, ensure_ascii=False).replace('], "', '],\n"').replace('{"', '\n{"')
    (folder / "goldens.json").write_text(write.strip() + "\n", encoding="utf-8")


def texts_of(tok, model, lines, beam=4):
    result = []
    for line in lines:
        batch = tok([line], return_tensors="pt")
        out = model.generate(**batch, num_beams=beam, length_penalty=1.0, max_length=24, early_stopping=False)
        ids = trimmed(out[0].tolist(), model.config.eos_token_id, model.config.pad_token_id)
        result.append({"source": line, "ids": batch["input_ids"][0].tolist(), "generated": ids,
                       "text": tok.batch_decode(out, skip_special_tokens=True)[0]})
    return result


def save(folder, model, tensors=None, generation=None, changes=None, drop=()):
    """config.json, generation_config.json and model.safetensors; `tensors` replaces what transformers would store."""
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made)
        said = json.loads(pathlib.Path(made, "config.json").read_text())
        stored = load_file(pathlib.Path(made, "model.safetensors"))
    said.update(changes or {})
    for key in drop:
        said.pop(key, None)
    write_json(folder / "config.json", said)
    if generation is not None:
        write_json(folder / "generation_config.json", generation)
    save_file({k: v.contiguous().clone() for k, v in (tensors or (lambda x: x))(stored).items()},
              folder / "model.safetensors", metadata={"format": "pt"})


def generation(model, **changes):
    c = model.config
    said = dict(bad_words_ids=[[c.pad_token_id]], decoder_start_token_id=c.decoder_start_token_id,
                eos_token_id=c.eos_token_id, forced_eos_token_id=c.forced_eos_token_id, max_length=24, num_beams=4,
                pad_token_id=c.pad_token_id, renormalize_logits=True) | changes
    said = {k: v for k, v in said.items() if v is not None}
    model.generation_config = GenerationConfig(**said)
    return said


SEARCHES = [(1, 1.0, 24), (4, 1.0, 24), (6, 1.0, 24), (4, 0.6, 24), (6, 1.4, 24), (4, 1.0, 5), (6, 0.6, 5), (1, 1.0, 4)]


def folder_of(name):
    print(name)
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


# Like the models of the hub: 4.x names and keys, one embedding, languages; trained until it translates.
def opus():
    folder = folder_of("opus")
    table, _ = tokenizer(folder)
    tok = read_tokenizer(folder)
    model = trained_model(table, tok)
    said = generation(model, max_length=512, num_beams=6)
    save(folder, model, generation=said, drop=["decoder_vocab_size", "share_encoder_decoder_embeddings", "tie_word_embeddings"],
         changes=dict(normalize_before=False, normalize_embedding=False, add_final_layer_norm=False,
                      static_position_embeddings=True, num_beams=6, max_length=512, bad_words_ids=[[table["<pad>"]]],
                      bos_token_id=0, torch_dtype="float32", transformers_version="4.22.0"))
    lines = [">>deu<< the dog sees the cat", ">>fra<< the dog runs", "a man sleeps", "the dög runs", ">>ita<< the dog",
             "  the   cat  ", "the man sees the man sees the man"]
    ids = [tok(line)["input_ids"][:-1] for line in lines if "ita" not in line]
    targets = [tok(text_target=t)["input_ids"][:-1] for t in
               ("der Hund sieht die Katze", "le chien court", "ein Mann", "der", "Katze", "der Mann sieht")]
    goldens(folder, model, ids, targets, SEARCHES,
            texts_of(tok, model, [line for line in lines if "ita" not in line]))
    # The same weights as torch.save keeps them, in both formats, with every copy of what is tied.
    state = model.state_dict()
    for name, zipped in (("opus_bin", True), ("opus_bin_old", False)):
        other = folder_of(name)
        torch.save(state, other / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        shutil.copy(folder / "config.json", other)


# A model saved from MarianModel: no "model." before the names and no final_logits_bias; config.json alone says how to search.
def bare():
    folder = folder_of("bare")
    model = random_model(5, activation_function="relu", scale_embedding=False, encoder_layers=3, decoder_layers=1,
                         encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=36)
    model.final_logits_bias.zero_()
    generation(model, num_beams=5, length_penalty=0.8)
    save(folder, model, changes=dict(num_beams=5, length_penalty=0.8, max_length=24), drop=["forced_eos_token_id"],
         tensors=lambda all: {k.removeprefix("model."): v for k, v in all.items() if k != "final_logits_bias"})
    ids = random_ids(1, 60, {0, 1, 59})
    goldens(folder, model, ids, random_ids(2, 60, {0, 59}), SEARCHES)


# Two vocabularies and two embeddings; 5.x names; probabilities that are not renormalised, and no forced end.
def separate():
    folder = folder_of("separate")
    source, target = tokenizer(folder, separate=True)
    pad = source["<pad>"]
    model = random_model(7, activation_function="gelu", vocab_size=len(source), decoder_vocab_size=len(target),
                         share_encoder_decoder_embeddings=False, pad_token_id=pad, decoder_start_token_id=pad,
                         forced_eos_token_id=None)
    with torch.no_grad():
        model.final_logits_bias[0, [pad, 5]] = 8  # bans that matter
    said = generation(model, renormalize_logits=None, forced_eos_token_id=None, bad_words_ids=[[pad], [5], [6]])
    save(folder, model, generation=said)
    tok = read_tokenizer(folder)
    lines = ["the dog sees a cat", ">>deu<< a man", "xyz runs"]
    ids = [tok(line)["input_ids"][:-1] for line in lines]
    goldens(folder, model, ids, random_ids(3, len(target), {0, pad})[:3], SEARCHES, texts_of(tok, model, lines))


# Three matrices; padding, end and start in odd places and all different; positions to the last one.
def untied():
    folder = folder_of("untied")
    model = random_model(11, activation_function="silu", tie_word_embeddings=False, share_encoder_decoder_embeddings=False,
                         vocab_size=50, decoder_vocab_size=61, pad_token_id=5, eos_token_id=2, decoder_start_token_id=7,
                         forced_eos_token_id=2, max_position_embeddings=24, d_model=12, encoder_attention_heads=3,
                         decoder_attention_heads=6)
    save(folder, model, generation=generation(model, bad_words_ids=[[5], [7], [2]], length_penalty=1.2))
    goldens(folder, model, random_ids(4, 50, {2, 5, 7}), random_ids(5, 61, {2, 5, 7}), SEARCHES)


# Half precision, from a file that has the tied matrix under two names, neither of them the usual one.
def half():
    folder = folder_of("half")
    model = rounded(random_model(13), torch.float16)
    def copies(all):
        all = {k: v.half() for k, v in all.items()}
        shared = all.pop("model.shared.weight")
        return all | {"model.decoder.embed_tokens.weight": shared, "lm_head.weight": shared}
    save(folder, model, generation=generation(model), tensors=copies, changes=dict(dtype="float16"))
    goldens(folder, model, random_ids(6, 60, {0, 59}), random_ids(7, 60, {0, 59}), SEARCHES[:4])


# bfloat16; a config that shares and does not tie, of which transformers 5 makes three matrices; old tables of positions.
def brain():
    folder = folder_of("brain")
    model = rounded(random_model(17, tie_word_embeddings=False), torch.bfloat16)
    def with_positions(all):
        positions = {f"model.{s}.embed_positions.weight": torch.zeros(40, 16) for s in ("encoder", "decoder")}
        return {k: v.bfloat16() for k, v in (all | positions).items()}
    save(folder, model, generation=generation(model), tensors=with_positions, changes=dict(dtype="bfloat16"))
    goldens(folder, model, random_ids(8, 60, {0, 59}), random_ids(9, 60, {0, 59}), SEARCHES[:4])


if __name__ == "__main__":
    for make in (opus, bare, separate, untied, half, brain):
        make()
    print(sum(f.stat().st_size for f in HERE.rglob("*") if f.is_file()), "bytes")
