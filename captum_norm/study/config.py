"""What does a study's file ask for?  TOML: a model, data, and what ``Study`` takes.

    [model]
    name = "./my-model"                 # a folder or hub id; left out: the embedded sentiment model
    [data]
    path = "films.jsonl"                # or: dataset = "an/id", split = "validation"
    evidence = "rationale"              # fields, where they have other names
    [study]
    methods = ["AttentionNorm", { method = "AttentionNorm", options = { aggregate = "rollout" } }]
    metrics = ["comprehensiveness", { metric = "sufficiency", removal = "mask" }]
    [report]
    reference = "AttentionNorm"

An unknown key is refused: a study that silently leaves out what its file asks for cannot be cited.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from captum_norm.numerals import at_least
from captum_norm.study.data import Example, Fields, read_examples
from captum_norm.study.metrics import METRICS, Metric
from captum_norm.study.variants import StoredScores, Variant
from captum_norm.suggestions import did_you_mean
from captum_norm.text_files import ENCODING

_STUDY = "methods metrics removal level target special position batch_size max_length seed random_draws".split()
_REPORT = ("reference", "test", "correction", "cases", "margin")


@dataclass(frozen=True)
class ModelAsked:
    """Which model, where, and in which dtype; ``device_map`` spreads one that is larger than a device."""

    name: str | None = None
    device: str = "cpu"
    dtype: str | None = None
    device_map: str | None = None


@dataclass(frozen=True)
class DataAsked:
    """Which texts: a file or a data set by its id, and which field holds what."""

    path: str | None = None
    dataset: str | None = None
    split: str | None = None
    subset: str | None = None
    limit: int | None = None
    text: str = "text"
    label: str | None = None
    evidence: str | None = None
    key: str | None = None
    text_pair: str | None = None
    evidence_pair: str | None = None
    span: str | None = None
    span_pair: str | None = None
    written: str | None = None
    sources: str | None = None
    foil: str | None = None

    def examples(self, folder: Path) -> list[Example]:
        """Read them; a relative path starts at ``folder``."""
        if (self.path is None) == (self.dataset is None):
            raise ValueError("[data] should have either path, a file, or dataset, an id.")
        if self.limit is not None:
            at_least(1, self.limit, "[data]: limit")
        others = {field.name: getattr(self, field.name) for field in fields(Fields) if field.name != "text"}
        names = Fields(self.text, **others) if any(others.values()) or self.text != "text" else None
        source = str(folder / self.path) if self.path is not None else str(self.dataset)
        return read_examples(source, names, split=self.split, subset=self.subset, limit=self.limit)


@dataclass(frozen=True)
class StudyFile:
    """A study as its file describes it.

    Attributes:
        folder: where the file lies; relative paths in it start there.
        model: which model.
        data: which texts.
        study: keyword arguments of ``Study``.
        report: keyword arguments of ``Results.table``.
    """

    folder: Path
    model: ModelAsked = field(default_factory=ModelAsked)
    data: DataAsked = field(default_factory=DataAsked)
    study: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


def read_study(path: str | Path) -> StudyFile:
    """Read a study's file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no TOML, or holds an unknown key, method or metric.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "films.toml"
        ...     _ = path.write_text('[data]\\npath = "films.jsonl"\\n[study]\\nmethods = ["AttentionNorm"]')
        ...     read_study(path).study["methods"][0].title
        'AttentionNorm'
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        content = tomllib.loads(path.read_text(encoding=ENCODING))
        return _study_file(content, path.parent)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _study_file(content: Mapping[str, Any], folder: Path) -> StudyFile:
    _check_keys("the file", content, ("model", "data", "study", "report"))
    parts = {name: content.get(name, {}) for name in ("model", "data", "study", "report")}
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            raise ValueError(f"[{name}] should be a table.")
    _check_keys("[model]", parts["model"], [f.name for f in fields(ModelAsked)])
    _check_keys("[data]", parts["data"], [f.name for f in fields(DataAsked)])
    _check_keys("[study]", parts["study"], _STUDY)
    _check_keys("[report]", parts["report"], _REPORT)
    for name, part in parts.items():
        _check_types(f"[{name}]", part)
    study = dict(parts["study"])
    for name, read in (("methods", _method), ("metrics", _metric)):
        if name in study:
            study[name] = [read(entry, folder) for entry in _listed(name, study[name])]
    return StudyFile(
        folder,
        ModelAsked(**parts["model"]),
        DataAsked(**parts["data"]),
        study,
        dict(parts["report"]),
    )


def _method(entry: Any, folder: Path) -> Variant | StoredScores | str:
    if entry in ("random", "oracle"):
        return str(entry)
    if isinstance(entry, str):
        return Variant(entry)
    if isinstance(entry, Mapping) and "scores" in entry:
        _check_keys("a method with scores", entry, ("name", "scores"))
        return StoredScores(str(entry.get("name", Path(entry["scores"]).stem)), folder / entry["scores"])
    if not isinstance(entry, Mapping) or "method" not in entry:
        raise ValueError(f'a method should be a name, {{ method = "..." }} or {{ scores = "file" }}, got {entry!r}.')
    _check_keys(f"the method {entry['method']}", entry, [f.name for f in fields(Variant)])
    return Variant(**entry)


def _metric(entry: Any, folder: Path) -> Metric:
    named = {"metric": entry} if isinstance(entry, str) else entry
    if not isinstance(named, Mapping) or "metric" not in named:
        raise ValueError(f'a metric should be a name or {{ metric = "..." }}, got {entry!r}.')
    name = named["metric"]
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}.{did_you_mean(str(name), METRICS)} There are: {', '.join(METRICS)}.")
    choices: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in named.items() if key != "metric"
    }
    _check_keys(f"the metric {name}", choices, [f.name for f in fields(METRICS[name])])
    return replace(METRICS[name], **choices)


def _listed(name: str, entry: Any) -> list[Any]:
    if not isinstance(entry, list):
        raise ValueError(f"{name} should be a list, got {entry!r}.")
    return entry


def _check_keys(where: str, keys: Iterable[str], allowed: Iterable[str]) -> None:
    names = list(allowed)
    unknown = next((key for key in keys if key not in names), None)
    if unknown is not None:
        raise ValueError(
            f"{where} has an unknown key {unknown!r}.{did_you_mean(unknown, names)} There are: {', '.join(names)}."
        )


# What the keys that are no texts, lists or tables of their own should be.
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    **dict.fromkeys(
        (
            "name device dtype device_map path dataset split subset text label evidence key text_pair evidence_pair "
            "span span_pair written sources foil special reference test correction cases"
        ).split(),
        ("a text in quotes", (str,)),
    ),
    **dict.fromkeys("limit batch_size max_length seed random_draws".split(), ("a whole number", (int,))),
    "target": ("a whole number or a text in quotes", (int, str)),
    "position": ("a whole number or a text in quotes", (int, str)),
    **dict.fromkeys(("removal", "level"), ("a text in quotes", (str,))),
}


def _check_types(where: str, part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        kind, types = _KINDS.get(key, ("", (object,)))
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types and kind):
            raise ValueError(f"{where}: {key} should be {kind}, got {value!r}.")
