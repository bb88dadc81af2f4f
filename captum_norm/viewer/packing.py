"""How are many numbers stored in few bytes?  Codes on a square-root scale, compressed.

A number v of a map with the largest size s is stored as the whole number c nearest to L √(v / s), L being 255 or
65,535, and read back as s (c / L)².  The square root keeps small numbers apart, which weights mostly are: the error is
at most √(v s) / L + s / 4L², which is 0.4 % or 0.002 % of s at the most, and less the smaller v is.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

FINE, COARSE = 16, 8
MOST_FINE = 120_000  # numbers in a page that are stored in 16 bits each; more get 8


@dataclass
class Packed:
    """Arrays of one attention call, back to back.

    Attributes:
        bits: of each code, 8 or 16.
        arrays: what the page must know of each array to read it back.
    """

    bits: int
    arrays: list[dict[str, Any]] = field(default_factory=list)
    _bytes: bytearray = field(default_factory=bytearray)

    def add(self, name: str, values: NDArray[np.float32], bits: int | None = None) -> None:
        """Store an array of one or more maps.

        Args:
            name: what the page calls it.
            values: (map, query, key) or (map, key); each map has a scale of its own.
            bits: of each code, where it should be other than of all.
        """
        bits = bits or self.bits
        signed = bool((values < 0).any())
        flat = values.reshape(len(values), -1).astype(np.float64)
        scales = np.abs(flat).max(axis=1, initial=0.0)
        codes = _codes(flat / np.where(scales > 0, scales, 1.0)[:, None], bits, signed)
        self.arrays.append(
            {
                "name": name,
                "shape": list(values.shape),
                "bits": bits,
                "signed": signed,
                "scales": [float(f"{scale:.7g}") for scale in scales],
                "offset": len(self._bytes),
            }
        )
        if bits == FINE:  # high bytes first: alike, they compress better by themselves
            self._bytes += (codes >> 8).astype(np.uint8).tobytes()
        self._bytes += (codes & 255).astype(np.uint8).tobytes()

    def as_text(self) -> str:
        """All arrays, deflated, in base64."""
        hard = 9 if len(self._bytes) < 10**6 else 6  # the last hundredth takes three times as long
        return base64.b64encode(zlib.compress(bytes(self._bytes), hard)).decode("ascii")


def _codes(parts: NDArray[np.float64], bits: int, signed: bool) -> NDArray[np.uint16]:
    """Codes of numbers from 0 to 1, or of signed ones from -1 to 1 around the code in the middle."""
    levels = 2**bits - 1
    roots = np.sign(parts) * np.sqrt(np.abs(parts))
    if signed:
        middle = levels // 2
        return (middle + np.rint(middle * roots)).astype(np.uint16)
    return np.rint(levels * roots).astype(np.uint16)
