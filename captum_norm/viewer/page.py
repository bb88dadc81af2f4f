"""How do maps become one file?  Data, style and script in one page that no text in it can break out of.

The data stand in the page as JSON that no browser runs, every ``<`` in it written as ``\\u003c``; the script puts text
into the page as text only.  A content security policy names the one script and the one style by their hashes and
forbids all else, any connection among it: were there a way to inject markup, nothing in it would run or load.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from captum_norm.files import replacing
from captum_norm.viewer.content import Additions, TokenLabels, content, count_numbers
from captum_norm.viewer.pictures import Picture

MOST_IN_NOTEBOOK = 3_000_000  # numbers that a notebook shows by itself, about as many bytes


def to_html(
    maps: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    title: str | None = None,
    tokens: TokenLabels | Mapping[str, TokenLabels] | None = None,
    prompt: int | Sequence[int] | None = None,
    images: Picture | Sequence[Picture] | None = None,
    examples: int | Sequence[int] | None = None,
    tokenizer: Any = None,
) -> str:
    """Attention maps as one HTML file to look at and touch: no network, light and dark, by mouse, touch and keyboard.

    Args:
        maps: what ``attention_maps`` gave.  With ``weights``, ``head_norms`` and ``summed_norms`` the page has weight,
            norm and difference for each head and for all together; other maps over keys are shown beside them.
        path: a file to write the page to as well, whole or not at all.
        title: what stands above; by default the model's class.
        tokens: labels for each position of an input, where the inputs were ids: a list of strings for one example,
            a list of such lists for a batch, or these by the input's name.  Word marks (``##``, ``Ġ``, ``▁``) are read,
            where all tokens of an input agree that they are marks.
        prompt: how many positions of a decoder's input are the prompt, padding among them; one number, or one for each
            example.  The others are marked as generated.
        images: for models that read patches, the picture behind them, as the model saw it: (channel, height, width),
            the bytes or path of a PNG, JPEG, GIF or WebP, or its data URI; a list or four axes for a batch.
        examples: which examples of the batch; None: all.
        tokenizer: whose tokens these are: it says what is a mark, and what a letter of the text.

    Returns:
        The page.  Padding is left out.  Up to 120,000 numbers are stored in 16 bits, more in 8, on a square-root scale:
        right to 0.002 % or 0.4 % of a map's largest number, and closer where they are smaller; the page says which.

    Raises:
        ValueError: for maps that hold no map over queries and keys, or NaN, and for choices that do not fit them.
        FileNotFoundError: if the folder of ``path`` is not there.

    Example:
        >>> import torch
        >>> from captum_norm import attention_maps
        >>> encoder = torch.nn.TransformerEncoderLayer(8, nhead=2, batch_first=True).eval()
        >>> maps = attention_maps(encoder, torch.randn(1, 3, 8), quantities=("weights", "head_norms", "summed_norms"))
        >>> to_html(maps)[:15]
        '<!doctype html>'
    """
    page = _page(content(maps, Additions(title, tokens, prompt, images, examples, tokenizer)))
    if path is not None:
        with replacing(path) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
    return page


def in_notebook(maps: Any, height: int = 860) -> str:
    """The page as part of a notebook: in a frame of its own, which may run its script and nothing else.

    Args:
        maps: as in `to_html`.
        height: of the frame, in pixels.

    Returns:
        The frame; where the maps hold too many numbers for a notebook, a line that says how to write them to a file.
    """
    numbers = count_numbers(maps)
    if numbers > MOST_IN_NOTEBOOK:
        return (
            f"<p>Attention maps of {len(maps.calls)} calls, {numbers / 1e6:.0f} million numbers: more than a notebook "
            "should hold. <code>maps.to_html(&quot;maps.html&quot;)</code> writes them to a page.</p>"
        )
    return (
        f'<iframe sandbox="allow-scripts" title="Attention maps" style="width:100%;height:{height}px;border:0" '
        f'srcdoc="{html.escape(to_html(maps))}"></iframe>'
    )


def _page(told: Mapping[str, Any]) -> str:
    script, style = _lean(_part("viewer.js")), _lean(_part("viewer.css"))
    parts = {
        "POLICY": (
            f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data:; "
            "base-uri 'none'; form-action 'none'"
        ),
        "TITLE": html.escape(told["title"]),
        "STYLE": style,
        "CONTENT": embedded(told),
        "SCRIPT": script,
    }
    pieces = _part("viewer.html").split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, rest = piece.split("}}", 1)
        filled += [parts[name], rest]
    return "".join(filled)


def embedded(told: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or a line of script.

    Example:
        >>> embedded(["</script>"])
        '["\\\\u003c/script\\\\u003e"]'
    """
    text = json.dumps(told, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    # A lone surrogate is no character and cannot be written to a file.
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _lean(text: str) -> str:
    """Without indentation and lines of comment, a tenth of it; no string in it runs over lines."""
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


@cache
def _part(name: str) -> str:
    return files("captum_norm.viewer").joinpath(name).read_text(encoding="utf-8")
