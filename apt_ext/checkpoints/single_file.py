"""What a single file holds, and where the parts come from that it lacks: those of SD3 and Flux are often the transformer alone."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from apt_ext.checkpoints.explained import explained
from apt_ext.checkpoints.families import Family, family_of_class, family_of_names, kind_of_config, names_in

__all__ = ["family_of_file", "lent_parts"]

WEIGHTS = ("*.safetensors", "*.bin")


def family_of_file(name: str, config: str | None) -> Family:
    """The family of a single file: by the names of its tensors, or, for one that is not of safetensors, by the folder that it is said to be of.

    Raises:
        ValueError: for a file that is no checkpoint, or of another family than the folder.
    """
    of_folder = family_of_class(kind_of_config(Path(config)), config) if config is not None and Path(config).is_dir() else None
    if not name.endswith(".safetensors"):
        return of_folder or family_of_class("StableDiffusionPipeline", name)
    family = family_of_names(names_in(Path(name)), name)
    if of_folder is not None and of_folder != family:
        raise ValueError(f"model {name!r} is of {family.label} and --config {config!r} of {of_folder.label}; name a folder of the file's own family")
    return family


def _has_weights(folder: Path) -> bool:
    return any(next(folder.glob(pattern), None) for pattern in WEIGHTS)


def lent_parts(library: Any, name: str, family: Family, config: str | None, given: Collection[str], **loading: Any) -> dict[str, Any]:
    """The parts that a single .safetensors file lacks, from the folder or the hub name after --config.

    Args:
        library: diffusers. `name`: of the file. `given`: parts that come from elsewhere. `loading`: of the parts' `from_pretrained`.

    Returns:
        Its arguments of `from_single_file`; None for a part that is in neither and can be done without, and for its tokenizer.

    Raises:
        ValueError: where a part is missing and nothing says where it is.
    """
    names, folder = names_in(Path(name)), Path(config) if config is not None and Path(config).is_dir() else None
    lacking = [part for part, begin in family.file.items() if part not in given and not any(one.startswith(begin) for one in names)]
    needed = [part for part in lacking if part in family.needed]
    absent = needed if config is None else [part for part in needed if folder is not None and not _has_weights(folder / part)]
    if absent:
        nor = "" if config is None else f", nor has {config!r}"
        raise ValueError(f"model {name!r} has no {' and no '.join(absent)}{nor}; name a whole diffusers folder of {family.label} with --config")
    made: dict[str, Any] = {}
    for part in (one for one in family.file if one not in given):
        words = part.replace("text_encoder", "tokenizer")
        usable = part not in lacking if folder is None else (folder / words).is_dir() and (part not in lacking or _has_weights(folder / part))
        if part not in family.needed and not usable:
            made |= {part: None, words: None}
        elif part in lacking:
            with explained(f"{part} of {config!r}, which {name!r} lacks,", hub=folder is None):
                package, kind = getattr(library, family.pipeline).load_config(config)[part]
                made[part] = getattr(importlib.import_module(package), kind).from_pretrained(config, subfolder=part, **loading)
    return made
