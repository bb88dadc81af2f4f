"""Is a store's file, byte for byte, as it was when it was closed?  A digest of all its bytes but the digest's own.

Checksums of rows say nothing of bytes that no row is read from: space inside pages, free pages, the file's header.  So
a store is *sealed* when it is closed, and the seal is broken, in a transaction of its own, before anything else is
written: a kill at any moment leaves a file that is sealed and as it was, or one that has no seal and says so.

The file's bytes are asked of SQLite, since whoever opens the file besides and closes it takes away SQLite's own locks.
"""

from __future__ import annotations

import hashlib
import sqlite3

TABLE = "CREATE TABLE seal (digest BLOB NOT NULL);\nINSERT INTO seal VALUES (zeroblob(16));"
_NONE = bytes(16)


def is_sealed(base: sqlite3.Connection) -> bool:
    """Whether the file has a seal, whole or not."""
    return _kept(base) != _NONE


def holds(base: sqlite3.Connection) -> bool | None:
    """Whether all bytes are as they were when the file was sealed; None where it has no seal, or none can be made.

    Call it inside a transaction, so that nobody writes meanwhile.
    """
    found = _digest(base) if is_sealed(base) else None
    return None if found is None else found == _kept(base)


def break_seal(base: sqlite3.Connection) -> None:
    """Say that the file is about to change; in a transaction of its own."""
    base.execute("UPDATE seal SET digest = ?", (_NONE,))


def seal(base: sqlite3.Connection) -> None:
    """Seal the file as the end of the transaction under way will leave it."""
    break_seal(base)  # what SQLite gives out is what it holds in memory, with the pages that this one touches
    base.execute("UPDATE seal SET digest = ?", (_digest(base, ahead=True) or _NONE,))


def _kept(base: sqlite3.Connection) -> bytes:
    [(digest,)] = base.execute("SELECT digest FROM seal").fetchall()
    return bytes(digest)


def _digest(base: sqlite3.Connection, *, ahead: bool = False) -> bytes | None:
    """Of the file, the 16 bytes of the seal left out; None where this SQLite does not give its bytes.

    Args:
        base: the store.
        ahead: the file as it will be once the transaction under way has ended: SQLite then counts it, in two places of
            the header, and writes its own version beside the second.
    """
    if not hasattr(base, "serialize"):
        return None
    content = memoryview(base.serialize())
    header = bytearray(content[:100])
    if ahead:
        count = (int.from_bytes(header[24:28], "big") + 1) % 2**32
        major, minor, patch = sqlite3.sqlite_version_info
        header[24:28] = header[92:96] = count.to_bytes(4, "big")
        header[96:100] = (major * 1_000_000 + minor * 1_000 + patch).to_bytes(4, "big")
    [(page,)] = base.execute("SELECT rootpage FROM sqlite_master WHERE name = 'seal'").fetchall()
    [(size,)] = base.execute("PRAGMA page_size").fetchall()
    end = page * size - header[20]  # a row's last column ends where its page does, but for what is reserved there
    digest = hashlib.blake2b(header, digest_size=16)
    digest.update(content[100 : end - 16])
    digest.update(content[end:])
    return digest.digest()
