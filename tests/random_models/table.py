"""What came of many models: counted by kind, with the seeds of the first faults."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tests.random_models.check import Case, Finding
from tests.random_models.config import KINDS, Config, drawn
from tests.random_models.positions import Positions
from tests.random_models.twins import Twins

Asked = Callable[[Config], Case | Twins | Positions]
"""What makes the findings of a model."""

STATUSES = ("right", "refused", "silent", "crash")


@dataclass(frozen=True)
class Outcome:
    """What came of one model.

    Attributes:
        seed, kind, variant, ordinary: which model.
        findings: one for each check; empty where ``fault`` says why this machine itself failed.
    """

    seed: int
    kind: str
    variant: str
    ordinary: bool
    findings: tuple[Finding, ...]
    fault: str = ""

    @classmethod
    def of(cls, seed: int, asked: Asked = Case) -> Outcome:
        """Make the model of a seed and check every answer about it: beside the truth, or beside its twin's."""
        config = drawn(seed)
        who = (seed, config.kind, config.variant, config.ordinary)
        try:
            return cls(*who, tuple(asked(config).findings()))
        except Exception as error:  # the generator's or the oracle's own fault: reported, never counted as an answer
            return cls(*who, (), f"{type(error).__name__}: {error}")


class Table:
    """Outcomes, counted."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self.outcomes = sorted(outcomes, key=lambda outcome: outcome.seed)

    def count(self, status: str, kind: str | None = None) -> int:
        """How many answers are so."""
        return sum(f.status == status for o in self._of(kind) for f in o.findings)

    @property
    def faults(self) -> list[Outcome]:
        """The models at which this machine itself failed."""
        return [outcome for outcome in self.outcomes if outcome.fault]

    def ordinary(self) -> tuple[int, int, int]:
        """How many answers about ordinary models are right, how many are refused, and how many there are."""
        found = [f.status for o in self.outcomes if o.ordinary for f in o.findings]
        return found.count("right"), found.count("refused"), len(found)

    def first(self, status: str, kind: str, count: int = 4) -> list[int]:
        """The first seeds with such an answer."""
        return [o.seed for o in self._of(kind) if any(f.status == status for f in o.findings)][:count]

    def reasons(self, *statuses: str) -> dict[tuple[str, str, str, str, str], list[int]]:
        """Seeds by (kind, variant, check, status, reason), numbers and names in the reason left out."""
        found: dict[tuple[str, str, str, str, str], list[int]] = defaultdict(list)
        for outcome in self.outcomes:
            variant = outcome.variant if outcome.kind not in ("masks", "everything") else ""
            for f in outcome.findings:
                if f.status in statuses:
                    found[outcome.kind, variant, f.check, f.status, reason(f)].append(outcome.seed)
        return dict(sorted(found.items()))

    def text(self) -> str:
        """The table, for a terminal."""
        lines = [f"{'kind':<17}{'models':>7}" + "".join(f"{s:>9}" for s in STATUSES) + f"{'unnamed':>9}  first silent"]
        for kind in dict.fromkeys(KINDS):
            of_kind = self._of(kind)
            if of_kind:
                lines.append(self._line(kind, of_kind, self.first("silent", kind) + self.first("crash", kind)))
        lines.append(self._line("all", self.outcomes, []))
        right, refused, answers = self.ordinary()
        if answers:
            share = f"{right} of {answers} answers right ({right / answers:.1%}), {refused} refused"
            lines.append(f"ordinary models: {share}")
        lines += [f"seed {o.seed}: {o.fault[:300]}" for o in self.faults]
        return "\n".join(lines)

    def _line(self, title: str, outcomes: list[Outcome], seeds: list[int]) -> str:
        counts = Counter(f.status for o in outcomes for f in o.findings)
        unnamed = sum(f.status == "refused" and not f.named for o in outcomes for f in o.findings)
        numbers = "".join(f"{counts[s]:>9}" for s in STATUSES)
        return f"{title:<17}{len(outcomes):>7}{numbers}{unnamed:>9}  {' '.join(map(str, seeds))}".rstrip()

    def details(self) -> str:
        """Each reason for an answer that is not right, with how often it was met and the first seeds."""
        lines = []
        for (kind, variant, check, status, why), seeds in self.reasons("silent", "crash", "refused").items():
            where = f"{kind}{': ' if variant else ''}{variant}"
            lines.append(f"{status:<8}{len(seeds):>5}  {where} | {check} | {why}  {seeds[:3]}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Everything, for another program."""
        right, refused, answers = self.ordinary()
        return {
            "models": len(self.outcomes),
            "answers": {status: self.count(status) for status in STATUSES},
            "by_kind": {
                kind: {status: self.count(status, kind) for status in STATUSES}
                for kind in dict.fromkeys(KINDS) if self._of(kind)
            },
            "ordinary": {"right": right, "refused": refused, "answers": answers},
            "faults": [{"seed": o.seed, "fault": o.fault} for o in self.faults],
            "not_right": [
                {"seed": o.seed, "kind": o.kind, "variant": o.variant, **asdict(f)}
                for o in self.outcomes for f in o.findings if f.status != "right"
            ],
        }  # fmt: skip

    def _of(self, kind: str | None) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if kind in (None, outcome.kind)]


def reason(finding: Finding) -> str:
    """Why an answer is not right, in words that models of one sort share."""
    if finding.status == "silent":
        told = re.sub(r"off by [\d.e+-]+", "off", finding.what)
        return re.sub(r"the \d+ maps", "the maps", re.sub(r"\bcall \d+ of \d+", "a call", told))
    told = finding.message.split("\n")[0]
    told = re.sub(r"'[^']*'", "'..'", re.sub(r"\(\d[^)]*\)|\[[^\]]*\]", "..", told))
    return f"{finding.what}: {re.sub(r'[0-9]+', 'n', told)[:110]}"
