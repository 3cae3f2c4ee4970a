"""Blanks a share of real catalogues and has them filled. bench/refill has the usage."""

import argparse
import ast
import collections
import hashlib
import os
import pathlib
import re
import subprocess
import tempfile

import sacrebleu

# Deliberately not Heed's own rules: what a translator would call a placeholder at a glance.
PLACEHOLDER = re.compile(
    r"%[-+ #0-9.*$']*(?:hh|h|ll|l|j|z|t|L)?[a-zA-Z%]|%\([^)]*\)[a-z]|\$\{?[A-Za-z_]\w*\}?|\{\w*\}|</?[A-Za-z][^>]*>"
    r"|--[a-z][\w-]+|https?://\S+[\w/]"
)


def entries(text):
    """(msgid, [msgstr, ...], first line, last line + 1) of each entry of msgunfmt's output."""
    found, key, start = [], None, None
    parts = collections.defaultdict(str)

    def finish(end):
        if "msgid" in parts:
            strings = [value for name, value in sorted(parts.items()) if name.startswith("msgstr")]
            found.append((parts.get("msgctxt", "") + "\4" + parts["msgid"], parts["msgid"], strings, start, end))
        parts.clear()

    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line.strip():
            finish(number)
            key = start = None
            continue
        if start is None:
            start = number
        if line.startswith("#"):
            continue
        if not line.startswith('"'):
            key, line = line.split(" ", 1)
            parts[key] = ""
        parts[key] += ast.literal_eval(line)
    finish(len(lines))
    return lines, found


def blanked(text, share):
    """The catalogue without the translations of a share of its entries, and those: {key: (msgid, [msgstr])}."""
    lines, found = entries(text)
    gone = {}
    for key, msgid, strings, start, end in found:
        draw = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32
        if not msgid or draw >= share or not all(strings):
            continue
        gone[key] = (msgid, strings)
        inside = False
        for number in range(start, end):
            if lines[number].startswith("msgstr"):
                inside = True
                lines[number] = lines[number].split(" ", 1)[0] + ' ""'
            elif inside:
                lines[number] = None
    return "\n".join(line for line in lines if line is not None), gone


def placeholders(text):
    return collections.Counter(PLACEHOLDER.findall(text))


def bare(text):
    return re.sub(r"[\W\d_]+", " ", text.lower()).strip()


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed: {done.stderr.strip()}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(prog="bench/refill")
    parser.add_argument("--model")
    parser.add_argument("--package", action="append")
    parser.add_argument("--language", default="de")
    parser.add_argument("--share", type=float, default=0.2)
    parser.add_argument("--keep", help="where the files stay")
    parser.add_argument("--known", action="append", default=[], help="what the model learned from: English TAB German")
    arguments = parser.parse_args()
    packages = arguments.package or ["tar", "findutils", "grep", "diffutils", "vim-runtime"]
    scratch = pathlib.Path(arguments.keep or tempfile.mkdtemp())
    scratch.mkdir(parents=True, exist_ok=True)
    model = [arguments.model] if arguments.model else []
    known = {bare(line.split("\t")[0]) for file in arguments.known for line in pathlib.Path(file).read_text().splitlines()}
    unknown = []

    print(f"{'catalogue':24}{'blanked':>8}{'filled':>8}{'with placeholders':>19}{'kept':>7}{'chrF':>7}{'copying':>9}  msgfmt -c")
    total = collections.Counter()
    outputs, references, sources = [], [], []
    for package in packages:
        run(os.environ["HEED"], "data", "messages", "--package", package, "--language", arguments.language,
            "--out", scratch / f"{package}.tsv", "--work", scratch / "packages")
        files = sorted((scratch / "packages" / package / "files").glob(
            f"**/{arguments.language}/LC_MESSAGES/*.mo"))
        for file in files:
            original = run("sh", "-c", f"msgunfmt --no-wrap '{file}' | msgconv --no-wrap --to-code=UTF-8")
            text, gone = blanked(original, arguments.share)
            before, after = scratch / f"{file.stem}.po", scratch / f"{file.stem}.filled.po"
            before.write_text(text)
            run(os.environ["HEED"], "translate", *model, "--po", before, "--out", after)
            check = subprocess.run(["msgfmt", "-c", "-f", "-o", "/dev/null", after], capture_output=True, text=True)
            filled = {key: strings for key, _, strings, _, _ in entries(after.read_text())[1]}
            ours, theirs, copied, counts = [], [], [], collections.Counter(blanked=len(gone))
            for key, (msgid, strings) in gone.items():
                wanted = placeholders(strings[0])
                done = all(filled[key])
                counts["filled"] += done
                if done:
                    ours.append(filled[key][0])
                    theirs.append(strings[0])
                    copied.append(msgid)
                    unknown.append(bare(msgid) not in known)
                # Where the translators themselves changed them, there is nothing to keep.
                if wanted and wanted == placeholders(msgid):
                    counts["with"] += 1
                    counts["kept"] += done and placeholders(filled[key][0]) == wanted
            total += counts
            outputs += ours
            references += theirs
            sources += copied
            show(file.stem, counts, ours, theirs, copied, "valid" if check.returncode == 0 else check.stderr.strip())
    show("all", total, outputs, references, sources, "")
    if known:
        ours, theirs = ([text for text, new in zip(texts, unknown) if new] for texts in (outputs, references))
        print(f"{len(outputs) - len(ours)} of those filled have an English text that is in --known, but for case, digits and "
              f"punctuation; chrF of the others: {sacrebleu.corpus_chrf(ours, [theirs]).score:.1f}")


def show(name, counts, ours, theirs, copied, verdict):
    def chrf(texts):
        return sacrebleu.corpus_chrf(texts, [theirs]).score if texts else 0

    kept = f"{100 * counts['kept'] / counts['with']:.1f}%" if counts["with"] else "-"
    print(f"{name:24}{counts['blanked']:8}{counts['filled']:8}{counts['with']:19}{kept:>7}{chrf(ours):7.1f}"
          f"{chrf(copied):9.1f}  {verdict}", flush=True)


main()
