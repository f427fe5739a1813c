"""The files that a command writes, so that it can always say which ones are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from apt_ext.demo.pictures import READ, WRITTEN, check_folder, save_picture, write_whole

__all__ = ["Output", "Unwritten"]


LONGEST = 255 - len("_phase99of99.png") - len("_999")
"""Bytes of a name's stem that every file system has room for."""


class Output:
    """A folder for results, or one file that the result is asked for as.

    Args:
        place: a folder, or a path that ends in a picture format's name.

    Attributes:
        folder: where files go. `file`: the one file, or None.
        written: the files that this command wrote and that are still there, oldest first.

    Raises:
        ValueError: where the folder cannot be written to, or the format cannot be written.
    """

    def __init__(self, place: Path):
        if place.suffix.lower() in READ and place.suffix.lower() not in WRITTEN and not place.is_dir():
            raise ValueError(f"{str(place)!r} is of a format that is not written; use a name in {', '.join(WRITTEN)}, or a folder")
        self.file = place if place.suffix.lower() in WRITTEN and not place.is_dir() else None
        self.folder = place.parent if self.file else place
        self.written, self._taken = list[Path](), set[str]()
        self._new = self._opened()

    def _opened(self) -> list[Path]:
        """Make sure that the folder can be written to; the folders that are made for that."""
        new = [parent for parent in (self.folder, *self.folder.parents) if not parent.exists()]
        check_folder(self.folder)
        return new

    def discard_if_new(self) -> None:
        """Take away the folders that were made for this command, where they are still empty."""
        for folder in self._new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def free_stem(self, stem: str) -> str:
        """`stem`, cut to a length that can be stored; or stem_2, stem_3, ... where that is there already or was given before: no result is overwritten."""
        stem = stem.encode()[:LONGEST].decode(errors="ignore")
        number, name = 1, stem
        while name in self._taken or (self.folder / f"{name}.png").exists():
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def picture(self, name: str, image: Image.Image, text: Mapping[str, str] | None = None, profile: bytes | None = None) -> Path:
        """Write name.png, or name as it is where it has a format's ending, with text and colour profile."""
        path = self.folder / (name if Path(name).suffix.lower() in WRITTEN else f"{name}.png")
        save_picture(image, path, text, profile)
        self.written.append(path)
        return path

    def report(self, name: str, values: Mapping[str, Any]) -> Path:
        """Write name.json."""
        path = self.folder / f"{name}.json"
        write_whole(path, (json.dumps(values, indent=1) + "\n").encode())
        self.written.append(path)
        return path

    def remove(self, path: Path) -> None:
        """Delete a file that this command wrote."""
        path.unlink()
        self.written.remove(path)


class Unwritten(Output):
    """The same names, and no files: for the processes of a job that leave the writing to another one."""

    def _opened(self) -> list[Path]:
        return []

    def picture(self, name: str, image: Image.Image, text: Mapping[str, str] | None = None, profile: bytes | None = None) -> Path:
        return self.folder / name

    def report(self, name: str, values: Mapping[str, Any]) -> Path:
        return self.folder / name

    def remove(self, path: Path) -> None:
        pass
