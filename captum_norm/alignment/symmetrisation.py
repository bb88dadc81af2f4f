"""Links from two directions made one: what both found, what either found, or what grows from the first into the second.

Source: Och and Ney (2003), https://aclanthology.org/J03-1002; Koehn et al. (2003), "Statistical Phrase-Based
Translation", https://aclanthology.org/N03-1017 (grow-diag-final).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

from captum_norm.alignment.links import Link

Symmetrisation: TypeAlias = Literal["intersection", "union", "grow-diag-final"]

_NEIGHBOURS = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


def symmetrise(
    forward: Iterable[Link], backward: Iterable[Link], how: Symmetrisation = "grow-diag-final"
) -> list[Link]:
    """One set of links from those of two directions.

    Args:
        forward: (source, target) links of the model from source to target.
        backward: (source, target) links of the model from target to source, already turned round.
        how: ``"intersection"`` (few and good), ``"union"`` (many), or ``"grow-diag-final"``: the intersection, then
            links of the union beside one that is in (diagonally, too) while they give a word its first link, then any
            links of ``forward`` and of ``backward`` that do so.

    Returns:
        The links in order.

    Raises:
        ValueError: if there is no such way.

    Example:
        >>> symmetrise([(0, 0), (1, 1)], [(0, 0), (2, 1)], "intersection")
        [(0, 0)]
        >>> symmetrise([(0, 0), (1, 1)], [(0, 0), (2, 1)])
        [(0, 0), (1, 1), (2, 1)]
    """
    check_way(how)
    one, other = set(forward), set(backward)
    if how == "intersection":
        return sorted(one & other)
    if how == "union":
        return sorted(one | other)
    links = one & other
    _grow(links, one | other)
    for direction in (one, other):
        for link in sorted(direction):
            if _gives_first(link, links):
                links.add(link)
    return sorted(links)


def check_way(how: str) -> None:
    """Refuse a way to join that there is not."""
    if how not in ("intersection", "union", "grow-diag-final"):
        raise ValueError(f"symmetrise: how should be intersection, union or grow-diag-final, got {how!r}.")


def _grow(links: set[Link], union: set[Link]) -> None:
    """Adds neighbours out of the union until there are none left to add."""
    grown = True
    while grown:
        grown = False
        for s, t in sorted(links):
            for ds, dt in _NEIGHBOURS:
                near = (s + ds, t + dt)
                if near in union and near not in links and _gives_first(near, links):
                    links.add(near)
                    grown = True


def _gives_first(link: Link, links: set[Link]) -> bool:
    """Whether either word of a link has none yet."""
    return all(link[0] != s for s, _ in links) or all(link[1] != t for _, t in links)
