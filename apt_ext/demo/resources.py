"""Reads Qt's binary resource files (`.rcc`), in which a training photograph's package keeps its pictures.

The layout is that of Qt's `rcc` and `QResource`: a header, then three tables that the header points to, of nodes, names and contents.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

__all__ = ["resource_files"]

ZLIB, FOLDER, ZSTD = 1, 2, 4  # a node's flags


def resource_files(file: Path) -> dict[str, bytes]:
    """The contents of a resource file, by their paths in it, folders parted by "/".

    Raises:
        ValueError: where it is no such file, or one of its contents is compressed by Zstandard.
    """
    data = file.read_bytes()
    if data[:4] != b"qres":
        raise ValueError(f"{file} is no Qt resource file")
    version, nodes, contents, names = struct.unpack_from(">4I", data, 4)
    size = 14 if version < 2 else 22  # newer ones have a date
    found: dict[str, bytes] = {}

    def visit(node: int, folder: str) -> None:
        name_at, flags, first, second = struct.unpack_from(">IHII", data, nodes + node * size)
        if flags & FOLDER:
            inside = f"{folder}{_name(data, names + name_at)}/" if node else ""  # the root has no name
            for child in range(second, second + first):
                visit(child, inside)
            return
        path = folder + _name(data, names + name_at)
        if flags & ZSTD:
            raise ValueError(f"{path} in {file} is compressed by Zstandard, which is not read here")
        start = contents + second
        (length,) = struct.unpack_from(">I", data, start)
        content = data[start + 4 : start + 4 + length]
        found[path] = zlib.decompress(content[4:]) if flags & ZLIB else content  # after its length

    visit(0, "")
    return found


def _name(data: bytes, start: int) -> str:
    (length,) = struct.unpack_from(">H", data, start)
    return data[start + 6 : start + 6 + 2 * length].decode("utf-16-be")  # after its hash
