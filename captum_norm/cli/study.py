"""``captum-norm study``: methods against each other on many texts."""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captum_norm.cli.report import printed

if TYPE_CHECKING:
    from captum_norm.cli.loading import Loaded
    from captum_norm.study import Example, Results
    from captum_norm.study.config import ModelAsked, StudyFile

SUMMARY = "methods against each other on many texts, in a store that can be resumed"
EXAMPLE = "captum-norm study films.toml"
DESCRIPTION = """\
Runs the study that a file describes: its methods on its texts, measured by its metrics. Every finished batch is
committed to the store, so a study that was killed goes on where it stopped when it is run again; under accelerate
launch its processes share the work. At the end it prints what captum-norm report prints.

  [model]
  name = "./my-model"      a folder or hub id; left out: the embedded sentiment model
  [data]
  path = "films.jsonl"     .jsonl, .csv or .tsv with fields text, label, evidence
  [study]
  methods = ["AttentionNorm", "Saliency", { method = "AttentionNorm", options = { aggregate = "rollout" } }]
  metrics = ["comprehensiveness", "sufficiency", "auprc"]

--quick needs no file: the embedded model on a dozen sentences, in under a minute."""

_QUICK_METRICS = ("comprehensiveness", "sufficiency", "log_odds", "auprc", "token_f1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of this command."""
    parser.add_argument("file", nargs="?", metavar="STUDY.toml", help="the study")
    parser.add_argument("--quick", action="store_true", help="the embedded model on a dozen sentences")
    parser.add_argument("--store", metavar="FILE", help="where results are kept (default: STUDY.db beside the file)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N examples")
    parser.add_argument("--lock", action="store_true", help="only write down the plan, before anything is run")
    parser.add_argument("--no-progress", action="store_true", help="show no bar")


def run(asked: argparse.Namespace) -> int:
    """Check, load, run and print; the exit code."""
    if asked.quick == (asked.file is not None):
        raise ValueError("give the file of a study, or --quick.")
    if asked.limit is not None and asked.limit < 1:
        raise ValueError(f"--limit {asked.limit}: it should be at least 1.")
    if asked.quick and asked.store is None:
        with tempfile.TemporaryDirectory() as folder:
            return _quick(asked, Path(folder) / "quick.db")
    return _quick(asked, Path(asked.store)) if asked.quick else _from_file(asked)


def _quick(asked: argparse.Namespace, store: Path) -> int:
    from captum_norm.study.config import ModelAsked, StudyFile
    from captum_norm.study.sample_texts import sample_texts

    file = StudyFile(Path(), ModelAsked(), study={"metrics": _QUICK_METRICS})
    return _run(file, sample_texts()[: asked.limit], store, asked, kept=asked.store is not None)


def _from_file(asked: argparse.Namespace) -> int:
    from captum_norm.study.config import read_study

    file = read_study(asked.file)
    if asked.limit is not None:
        file = replace(file, data=replace(file.data, limit=asked.limit))
    store = Path(asked.store) if asked.store else Path(asked.file).with_suffix(".db")
    return _run(file, file.data.examples(file.folder), store, asked, kept=True)


def _run(file: StudyFile, examples: list[Example], store: Path, asked: argparse.Namespace, kept: bool) -> int:
    from captum_norm.cli import loading
    from captum_norm.study import Study

    with loading.quiet():
        loaded = _load(file.model)
        study = Study(loaded.model, loaded.tokenizer, **file.study)
        if asked.lock:
            print(f"locked in {store}: {study.lock(examples, store, **file.report)}")
            return 0
        results = study.run(examples, store, progress=not asked.no_progress)
        if os.environ.get("RANK", "0") == "0":
            print(_shown(loaded, results, file.report))
            if kept:
                print(f"\nkept in {store}; captum-norm report {store} shows it again")
    return 0


def _shown(loaded: Loaded, results: Results, report: dict[str, Any]) -> str:
    return f"{loaded.name} ({type(loaded.model).__name__})\n\n{printed(results, results.table(**report))}"


def _load(asked: ModelAsked) -> Loaded:
    from captum_norm.cli import loading

    if asked.device_map is not None:
        return _spread(asked)
    device = asked.device
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"  # one process per device
    wanted = argparse.Namespace(model=asked.name, device=device, dtype=asked.dtype)
    return loading.load(wanted)


def _spread(asked: ModelAsked) -> Loaded:
    """A model over several devices, as accelerate places it."""
    import torch
    import transformers

    from captum_norm.cli.loading import Loaded

    if asked.name is None:
        raise ValueError("device_map is for large models: name one in [model].")
    config = transformers.AutoConfig.from_pretrained(asked.name)
    kind: Any = getattr(transformers, (getattr(config, "architectures", None) or ["AutoModel"])[0])
    dtype = getattr(torch, asked.dtype or "float32")
    model = kind.from_pretrained(asked.name, device_map=asked.device_map, dtype=dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(asked.name)
    return Loaded(model, tokenizer, asked.name, "none")
