"""The files that a command writes, so that it can always say which ones are there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from apt_ext.demo.pictures import check_folder, save_png, write_whole

__all__ = ["Output"]


class Output:
    """A folder for results.

    Attributes:
        folder: where files go.
        written: the files that this command wrote and that are still there, oldest first.

    Raises:
        ValueError: where the folder cannot be written to.
    """

    def __init__(self, folder: Path):
        self._new = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        check_folder(folder)
        self.folder, self.written = folder, list[Path]()

    def discard_if_new(self) -> None:
        """Take away the folders that were made for this command, where they are still empty."""
        for folder in self._new:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def free_stem(self, stem: str) -> str:
        """`stem`, or stem_2, stem_3, ... where a picture of that name is there already: no earlier result is overwritten."""
        number, name = 1, stem
        while (self.folder / f"{name}.png").exists():
            number += 1
            name = f"{stem}_{number}"
        return name

    def picture(self, name: str, image: Image.Image, text: Mapping[str, str] | None = None) -> Path:
        """Write name.png with text chunks."""
        path = self.folder / f"{name}.png"
        save_png(image, path, text)
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
