"""An answer beside its sources as one HTML file: which source each token rests on most, and what each source is."""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Sequence

_LEVELS = 10
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_STYLE = """\
:root { color-scheme: light dark }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem }
p.about { opacity: 0.7 }
.answer span { border-bottom: 3px solid; margin-right: 0.25rem }
section { border-left: 5px solid; padding-left: 0.8rem; margin: 1rem 0; white-space: pre-wrap }
h3 { font-size: 1rem; margin: 0 }
meter { width: 12rem }
""" + "\n".join(
    f".c{number} {{ border-color: {colour} }}\n"
    f".answer .c{number}.l{level} {{ background: {colour}{round(120 * level / _LEVELS):02x} }}"
    for number, colour in enumerate(_COLOURS)
    for level in range(_LEVELS + 1)
)


def answer_page(
    title: str, tokens: Sequence[str], names: Sequence[str], texts: Sequence[str], scores: Sequence[Sequence[float]]
) -> str:
    """The page.

    Args:
        title: what stands above.
        tokens: of the answer.
        names, texts: of the sources.
        scores: of each token, for each source.

    Example:
        >>> page = answer_page("gpt2", ["Paris"], ["a.txt", "b.txt"], ["<b>Paris</b>", "Rome"], [[3.0, 1.0]])
        >>> page[:15], "&lt;b&gt;" in page, 'title="a.txt 75 %, b.txt 25 %"' in page
        ('<!doctype html>', True, True)
    """
    shares = [_shares(row) for row in scores]
    written = "".join(_token(token, names, row) for token, row in zip(tokens, shares, strict=True))
    totals = _shares([sum(row[number] for row in scores) for number in range(len(names))])
    listed = "".join(_source(n, names[n], texts[n], totals[n]) for n in range(len(names)))
    policy = f"default-src 'none'; style-src '{_hash(_STYLE)}'; base-uri 'none'; form-action 'none'"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<h1>{html.escape(title)}</h1><h2>Answer</h2><p class='answer'>{written}</p>"
        "<p class='about'>Each token has the colour of the source that it rests on most, darker for a larger share; "
        "pointing at it tells the shares.</p>"
        f"<h2>Sources</h2>{listed}</html>\n"
    )


def _token(token: str, names: Sequence[str], shares: Sequence[float]) -> str:
    order = sorted(range(len(names)), key=lambda number: -abs(shares[number]))
    told = ", ".join(f"{names[number]} {100 * shares[number]:.0f} %" for number in order[:5])
    best = order[0]
    level = round(_LEVELS * min(1.0, abs(shares[best])))
    kind = f"c{best % len(_COLOURS)} l{level}"
    return f'<span class="{kind}" title="{html.escape(told)}">{html.escape(token.strip() or "␣")}</span> '


def _source(number: int, name: str, text: str, share: float) -> str:
    meter = f'<meter min="0" max="1" value="{abs(share):.4f}">{share:.4f}</meter> {100 * share:.1f} %'
    return (
        f'<section class="c{number % len(_COLOURS)}"><h3>{html.escape(name)}</h3>{meter}\n{html.escape(text)}</section>'
    )


def _shares(scores: Sequence[float]) -> list[float]:
    total = sum(map(abs, scores)) or 1.0
    return [score / total for score in scores]


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
