"""A folder in which the lines of the documentation find what they name: small models, texts and files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from transformers import BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from captum_norm.alignment import write_links
from captum_norm.alignment.examples import examples
from captum_norm.models import load_translation
from tests.cli.models import PIECES, TEXT, bert_config, bert_tokenizer, gpt_tokenizer
from tests.documentation.blocks import ROOT, blocks

# Sizes alone: what takes minutes as it is written takes seconds.
SMALLER = {
    "tests.coverage.run": "tests.coverage.run --only bert",
    "tests.coverage.rows": "tests.coverage.rows --only bert",
    "tests.coverage.libraries": "tests.coverage.libraries --only x-transformers",
    "--num_processes 8": "--num_processes 2",
    "--tables 400": "--tables 2",
    "--folder planted --seeds 5": "--folder planted --seeds 1 --count 3 --task needle",
    "range(5)": "range(1)",
    "range(3)": "range(1)",
    "--count 100": "--count 2",
    "--count 60": "--count 1",
    "count=100": "count=4",
    "count=60": "count=4",
    "batch_size=50": "batch_size=4",
    "tests.benchmarks.bench_page": "tests.benchmarks.bench_page --trial",
    "tests.benchmarks.bench_length": "tests.benchmarks.bench_length --lengths 64 128",
}
FILMS = (("A warm film that never feels forced.", "good", [[2, 6]]), ("The plot is thin.", "bad", [[12, 16]]))
TREES = "(4 (4 (3 Good) (2 and)) (4 (4 great) (2 .)))\n(0 (4 great) (0 (0 bad) (2 it)))\n"
REVIEWS = ("Positive\tI liked this warm film.\t1", "Negative\tI hated this film.\t1")


def build(folder: Path) -> None:
    """Everything that some line names."""
    torch.manual_seed(0)
    for name in ("my-model", "bert-base-uncased"):
        BertForSequenceClassification(bert_config()).save_pretrained(folder / name)
        bert_tokenizer().save_pretrained(folder / name)
    for part in load_translation():
        part.save_pretrained(folder / "facebook/nllb-200-distilled-600M")
    films = [
        {"id": f"film-{i}", "text": text, "hypothesis": "The film is dull.", "label": label, "evidence": spans}
        for i, (text, label, spans) in enumerate(FILMS)
    ]
    (folder / "films.jsonl").write_text("".join(json.dumps(one) + "\n" for one in films), encoding="utf-8")
    (folder / "films.toml").write_text(next(b.code for b in blocks() if b.language == "toml"), encoding="utf-8")
    words = [len(f"{one['text']} {one['hypothesis']}".split()) for one in films]
    theirs = [{"id": str(i), "scores": [1.0] * count} for i, count in enumerate(words)]
    (folder / "theirs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in theirs), encoding="utf-8")
    (folder / "wiki.txt").write_text("A warm film.\n\nThe plot is thin.\n", encoding="utf-8")
    pairs, gold = examples()
    for place, end in enumerate(("de", "en")):
        (folder / f"test.{end}").write_text("".join(" ".join(pair[place]) + "\n" for pair in pairs), encoding="utf-8")
    write_links(folder / "alignment.talp", [sorted(one.sure) for one in gold], "talp")
    (folder / "trees").mkdir()
    (folder / "trees/dev.txt").write_text(TREES, encoding="utf-8")
    (folder / "trees/test.txt").write_text(TREES, encoding="utf-8")
    (folder / "dev_paired.tsv").write_text("\n".join(["Sentiment\tText\tbatch_id", *REVIEWS]), encoding="utf-8")
    for name in ("figures", "docs"):
        (folder / name).mkdir()
    for page in ("benchmarks", "certificate"):
        (folder / f"docs/{page}.md").write_bytes((ROOT / f"docs/{page}.md").read_bytes())
    (folder / "tutorials/studies").mkdir(parents=True)
    for study in (ROOT / "tutorials/studies").glob("*.toml"):
        (folder / "tutorials/studies" / study.name).write_bytes(study.read_bytes())
    (folder / "tests").symlink_to(ROOT / "tests")
    made = shell("captum-norm study films.toml", folder)  # films.db, which pages before that of studies name
    assert made.returncode == 0, made.stderr


def names() -> dict[str, object]:
    """What Python blocks take for given: a model with its tokenizer, and pairs of sentences."""
    pairs, gold = examples()
    half = len(pairs) // 2
    tokenizer = bert_tokenizer()
    return {
        "model": BertForSequenceClassification(bert_config()).eval(),
        "tokenizer": tokenizer,
        "encoding": tokenizer(TEXT, return_tensors="pt"),
        "methods": ["AttentionNorm", "AttentionWeights"],
        "dev_pairs": pairs[:half], "dev_gold": gold[:half], "test_pairs": pairs[half:], "test_gold": gold[half:],
    }  # fmt: skip


def decoder() -> dict[str, object]:
    """The same for what a language model writes."""
    sizes = {"vocab_size": len(PIECES), "n_embd": 16, "n_layer": 2, "n_head": 4, "bos_token_id": 2, "eos_token_id": 3}
    model = GPT2LMHeadModel(GPT2Config(n_positions=64, **sizes)).eval()
    model.generation_config.pad_token_id = 0
    tokenizer = gpt_tokenizer()
    encoding = {"input_ids": tokenizer("a warm film", return_tensors="pt")["input_ids"]}
    return {"model": model, "tokenizer": tokenizer, "encoding": encoding}


def smaller(code: str) -> str:
    """The same with smaller sizes."""
    for size, small in SMALLER.items():
        code = code.replace(size, small)
    return code


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A line as it is typed, in the folder, with the commands of this environment."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    scratch = folder / "scratch"  # what a line keeps there is its own, and nothing that was kept before is found
    scratch.mkdir(exist_ok=True)
    told = {"PATH": path, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)}
    line = smaller(line).replace("captum-norm ", f"{sys.executable} -m captum_norm ")
    command = ["bash", "-euo", "pipefail", "-c", line]
    return subprocess.run(command, cwd=folder, env={**os.environ, **told}, capture_output=True, text=True, check=False)
