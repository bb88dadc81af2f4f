"""How does a picture get into a page without network?  As a data URI of an image that browsers only draw."""

from __future__ import annotations

import base64
import os
import re
import struct
import zlib
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

Picture: TypeAlias = "Tensor | bytes | str | os.PathLike[str]"
_KINDS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp"}


def data_uri(picture: Picture) -> str:
    """A picture as ``data:image/…;base64,…``.

    Args:
        picture: (channel, height, width) with one or three channels, or (height, width), drawn from its smallest number
            to its largest; the bytes of a PNG, JPEG, GIF or WebP file; the path of one; or a data URI of one.

    Raises:
        ValueError: for anything else, naming what was found.

    Example:
        >>> data_uri(torch.rand(3, 4, 4))[:22]
        'data:image/png;base64,'
    """
    if isinstance(picture, Tensor):
        picture = _png(_eight_bits(picture))
    if isinstance(picture, str) and picture.startswith("data:"):
        if not re.fullmatch(r"data:image/(png|jpeg|gif|webp);base64,[A-Za-z0-9+/]+=*", picture):
            raise ValueError(f"to_html: images holds {picture[:40]!r}…, no data URI of a PNG, JPEG, GIF or WebP.")
        return picture
    if not isinstance(picture, bytes):
        picture = Path(picture).read_bytes()
    kind = next((kind for start, kind in _KINDS.items() if picture.startswith(start)), None)
    if kind is None:
        raise ValueError(f"to_html: images holds a file that begins with {picture[:8]!r}: no PNG, JPEG, GIF or WebP.")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _eight_bits(picture: Tensor) -> Tensor:
    """(height, width, 3) uint8."""
    if picture.ndim == 2:
        picture = picture[None]
    if picture.ndim != 3 or picture.shape[0] not in (1, 3) or not picture.numel():
        raise ValueError(
            "to_html: a picture should be (channel, height, width) with one or three channels, or (height, width), got "
            f"shape {tuple(picture.shape)}. Give the pictures of a batch as a list, or as a tensor with four axes."
        )
    picture = picture.detach().to("cpu", torch.float32)
    if not bool(picture.isfinite().all()):
        raise ValueError("to_html: a picture holds NaN or infinity.")
    picture = picture - picture.min()
    picture = (picture / picture.max().clamp_min(1e-30) * 255).round().to(torch.uint8)
    return picture.expand(3, -1, -1).permute(1, 2, 0).contiguous()


def _png(colours: Tensor) -> bytes:
    height, width, _ = colours.shape
    rows = torch.cat([colours.new_zeros(height, 1), colours.reshape(height, -1)], dim=1)  # each row: filter 0, colours

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.numpy().tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
