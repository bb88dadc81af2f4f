"""Where do methods stand by a study's metrics, and does it hold?  Over other examples, over variants, over choices."""

from __future__ import annotations

import math

import numpy as np

from captum_norm.study.report.cells import complete_cases
from captum_norm.study.report.measured import Measured, Numbers
from captum_norm.study.report.stability import (
    Move,
    OrderChanges,
    RankInterval,
    critical_groups,
    order_changes,
    rank_intervals,
    ranks_of,
)
from captum_norm.study.report.statistics import bootstrap_interval
from captum_norm.study.variants import ORACLE


class Rankings(Measured):
    """The ranks of a study's methods, and how far they hold (`captum_norm.study.report.stability`)."""

    def ranks(self, metric: str, *, confidence: float = 0.95, seed: int = 0) -> dict[str, RankInterval]:
        """Where each method's rank lies when the examples are drawn anew; 1 is the best, the oracle takes no part."""
        return rank_intervals(self._competing(metric), self.higher_is_better(metric), confidence=confidence, seed=seed)

    def groups(self, metric: str, *, alpha: float = 0.05, seed: int = 0) -> list[tuple[str, ...]]:
        """Groups of neighbours in rank of whom no two differ, by tests of every pair with Holm's correction."""
        return critical_groups(self._competing(metric), self.higher_is_better(metric), alpha=alpha, seed=seed)

    def _competing(self, metric: str) -> dict[str, Numbers]:
        """Every method's values over the examples that all of them have; the oracle takes no part."""
        complete = complete_cases(self.values(metric))
        return {name: of for name, of in complete.items() if name != ORACLE and not np.isnan(of).all()}

    def moves(self, metric: str, *, confidence: float = 0.95, seed: int = 0) -> list[Move]:
        """How far each variant moves its method, all others as listed first.  Empty where no method has variants."""
        values, higher = complete_cases(self.values(metric)), self.higher_is_better(metric)
        bases = [names[0] for names in self._families().values()]
        means = {name: _mean(values[name]) for name in self.methods}
        moves = []
        for base, *variants in self._families().values():
            for variant in variants:
                interval = bootstrap_interval(values[variant], confidence, 9999, seed, against=values[base])
                places = [bases, [variant if name == base else name for name in bases]]
                before, after = (
                    ranks_of(np.array([means[name] for name in names]), higher)[bases.index(base)] for names in places
                )
                numbers = interval.mean, interval.low, interval.high
                moves.append(Move(variant, base, float(before), float(after), *numbers))
        return moves

    def universes(self, metric: str) -> dict[str, dict[str, float]]:
        """The methods' means under every combination of choices that the study holds, for `order_changes`.

        A universe is a variant of the metric (other tokens removed, otherwise, other fractions) and a choice that
        variants of methods make; a method without that choice is taken as it is listed first.  Universes of several
        stores, of other seeds, say, can be put together.

        Args:
            metric: a metric's name, without the arguments that tell its variants from each other.

        Raises:
            KeyError: for a metric that the study does not have.
        """
        kin = [name for name in self.metrics if name.partition("(")[0] == metric.partition("(")[0]]
        self._place("metric", kin[0] if kin else metric)
        families = self._families()
        bases = {family: names[0] for family, names in families.items()}
        choices: dict[str, dict[str, str]] = {"": {}}
        for method in self.config["methods"]:
            if method["name"] in families.get(method["family"], [])[1:]:
                choices.setdefault(method.get("choice") or method["name"], {})[method["family"]] = method["name"]
        universes = {}
        for name in kin:
            means = {method: _mean(of) for method, of in complete_cases(self.values(name)).items()}
            for choice, chosen in choices.items():
                universe = ", ".join(filter(None, [name, choice]))
                universes[universe] = {family: means[method] for family, method in (bases | chosen).items()}
        return universes

    def order_changes(self, metric: str) -> OrderChanges:
        """How often each pair of methods changes order over the `universes` of a metric."""
        return order_changes(self.universes(metric), self.higher_is_better(metric))

    def _families(self) -> dict[str, list[str]]:
        """method -> its variants, as listed; the oracle takes no part."""
        families: dict[str, list[str]] = {}
        for method in self.config["methods"]:
            if method["name"] != ORACLE:
                families.setdefault(method["family"], []).append(method["name"])
        return families


def _mean(values: Numbers) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else math.nan
