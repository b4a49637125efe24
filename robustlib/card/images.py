"""A user's labelled images: which folder is which output of the model, and which can be read."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from robustlib.core.checks import check_whole
from robustlib.data import DATASETS, DataError, Split, load, read_image
from robustlib.data.base import subset_ids
from robustlib.data.folder import MEMORY_LIMIT, Listing, list_split
from robustlib.data.images import decoding_threads, shown, warn_of_others

NAMED = tuple(name for name in DATASETS if name != "folder")
"""The data sets that need no folder."""

_SYNSET = re.compile(r"(?<![0-9A-Za-z])n\d{8}(?![0-9A-Za-z])")  # WordNet's, such as n01440764
GIVE_CLASSES = (
    "give classes, a text file that names the class of each output, one a line, in the order of "
    "the outputs"
)
"""What to do where folders don't tell which class is which output."""


@dataclass(frozen=True)
class CardImages:
    """Labelled images whose labels are positions among the outputs of a model.

    Attributes:
        split: the images that could be read, balanced over the classes at every beginning.
        classes: names of the outputs, in their order; some may have no images.
        unreadable: names of the files that couldn't be read.
        notes: sentences on how the images were read and labelled.
    """

    split: Split
    classes: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_images(
    source: str | Path,
    *,
    image_size: int,
    outputs: int | None = None,
    classes: str | Path | None = None,
    n: int = 0,
) -> CardImages:
    """Images with a label for each, from a folder or a data set by name.

    Args:
        source: a folder of class folders, <class>/<image>; a folder with test/ or val/ (then
            these, test/ first), whose train/ is left alone; or one of `NAMED`. "./cifar10" is a
            folder of that name.
        image_size: side in pixels. How a file becomes pixels: as in `robustlib.data.load`.
        outputs: number of outputs of the model; None leaves it unchecked.
        classes: a text file with a class a line, in the order of the model's outputs. A class
            folder gets the position of the line that is its name, or that holds the same WordNet
            id (n01440764). Lines without a folder are outputs without images. None: the
            alphabetical order of the folders, as torchvision's ImageFolder has it.
        n: size of a class-balanced subset, always the same and nested (0: everything; of a folder
            with fewer, too). It doesn't depend on `classes`; nor do the ids. Files that can't be
            read are missing from it.

    Raises:
        ValueError: no images, too many for memory, or an order of classes that can't be told from
            folders and file; `DataError` if it lies in files or folders. Says what to do.
    """
    image_size = check_whole(image_size, "image_size", low=1)
    n = check_whole(n, "n", low=0)
    unreadable: tuple[str, ...] = ()
    if str(source) in NAMED:
        dataset = load(str(source), n_train=10, n_test=n, image_size=image_size)
        order = f"in the order of {source}"
        names, positions, notes = _order(dataset.classes, order, classes, outputs)
        assert isinstance(dataset.test, Split)
        split = dataset.test
    else:
        listing = list_split(_images_folder(Path(source).expanduser()))
        order = "in the alphabetical order of the folders"
        names, positions, notes = _order(listing.classes, order, classes, outputs)
        warn_of_others(listing.others, stacklevel=2)
        count = min(n, len(listing.files))
        split, unreadable = _decode(listing, subset_ids(listing.labels, count, "n"), image_size)
        notes += _note_of_unreadable(unreadable)
    split = replace(split, labels=torch.tensor(positions)[split.labels])
    return CardImages(split, names, unreadable, tuple(notes))


def _order(
    folders: tuple[str, ...], order: str, classes: str | Path | None, outputs: int | None
) -> tuple[tuple[str, ...], list[int], list[str]]:
    """Names of the outputs, for each folder the output that it stands for, and notes."""
    if classes is None:
        if outputs is not None and len(folders) != outputs:
            raise ValueError(
                f"the images are of {len(folders)} classes, but the model has {outputs} outputs: "
                f"{GIVE_CLASSES}."
            )
        return folders, list(range(len(folders))), [f"The outputs are, {order}: {_ends(folders)}."]
    file = Path(classes).expanduser()
    names = _read_classes(file, outputs)
    return names, *_positions(folders, names, file)


def _images_folder(root: Path) -> Path:
    """`root`, or its test/ or val/."""
    if not root.is_dir():
        raise DataError(
            f"there is no folder {shown(root.absolute())}; name one of class folders, or one of "
            f"{', '.join(NAMED)}."
        )
    inside = {entry.name for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."}
    if not inside or inside - {"train", "test", "val"}:
        return root
    for part in ("test", "val"):
        if part in inside:
            return root / part
    raise DataError(
        f"{shown(root)} has train/, but neither test/ nor val/; give {shown(root / 'train')} if "
        "the card is to be made of the training images."
    )


def _read_classes(file: Path, outputs: int | None) -> tuple[str, ...]:
    try:
        text = file.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"the file of classes {file} can't be read as text ({error}); it must name a class a "
            "line, in the order of the model's outputs."
        ) from error
    lines = tuple(line.strip() for line in text.splitlines())
    if not lines:
        raise DataError(f"the file of classes {file} is empty; it must name a class a line.")
    if "" in lines:
        raise DataError(
            f"line {lines.index('') + 1} of {file} is empty; each line must name the class of an "
            "output, in their order."
        )
    if outputs is not None and len(lines) != outputs:
        raise DataError(
            f"{file} names {len(lines)} classes, but the model has {outputs} outputs; it must "
            "name one for each output, also for those without images."
        )
    return lines


def _positions(
    folders: Sequence[str], names: Sequence[str], file: Path
) -> tuple[list[int], list[str]]:
    """For each folder the line of `file` that stands for it, and notes.

    The line that is its name; without one, the line that holds the same WordNet id.
    """
    lines: dict[str, list[int]] = {}
    for position, name in enumerate(names):
        lines.setdefault(name, []).append(position)
        for synset in set(_SYNSET.findall(name)) - {name}:
            lines.setdefault(synset, []).append(position)
    found = [lines.get(name) or lines.get(_synset(name), []) for name in folders]
    missing = [name for name, places in zip(folders, found, strict=True) if not places]
    if missing:
        near = difflib.get_close_matches(missing[0], names, n=1, cutoff=0.0)[0]
        raise DataError(
            f"{len(missing)} of {len(folders)} class folders aren't in {file}, such as "
            f"{shown(missing[0])!r} (nearest there: {near!r}); write the folders' names into it."
        )
    taken: dict[int, str] = {}
    for folder, places in zip(folders, found, strict=True):
        if len(places) > 1:
            where = " and ".join(str(place + 1) for place in places)
            raise DataError(
                f"the class folder {shown(folder)!r} is named on the lines {where} of {file}; make "
                "these differ, as the folders do."
            )
        if places[0] in taken:
            raise DataError(
                f"the class folders {shown(taken[places[0]])!r} and {shown(folder)!r} are both "
                f"line {places[0] + 1} of {file}; join or rename them."
            )
        taken[places[0]] = folder
    notes = [f"The outputs are, by {file.name}: {_ends(names)}."]
    if len(folders) < len(names):
        notes.append(f"{len(folders)} of the {len(names)} outputs have images.")
    return list(taken), notes


def _synset(name: str) -> str:
    found = _SYNSET.search(name)
    return found[0] if found else name


def readable(name: str) -> str:
    """A class as people call it: "tench" for "n01440764 tench" and "0000_n01440764_tench"."""
    words = re.sub(r"^\d+(?=\s)", "", _SYNSET.sub("", name.replace("_", " "))).strip(" ,:-")
    return words or name


def _ends(names: Sequence[str]) -> str:
    shorter = [*names[:3], "...", names[-1]] if len(names) > 4 else names
    return ", ".join(map(shown, shorter))


def _decode(listing: Listing, ids: np.ndarray, image_size: int) -> tuple[Split, tuple[str, ...]]:
    """The readable images of `ids`, with labels as in `listing`, and the unreadable files."""
    one = 3 * image_size**2
    if one * len(ids) > MEMORY_LIMIT:
        raise ValueError(
            f"{len(ids)} images of {image_size} px take {one * len(ids) / 2**30:.1f} GiB; give "
            f"n, at most {MEMORY_LIMIT // one}, for a balanced part of them."
        )
    files = [listing.files[i] for i in ids]
    images = torch.empty(len(files), 3, image_size, image_size, dtype=torch.uint8)

    def decode(place: int) -> DataError | None:
        try:
            pixels = read_image(listing.folder / files[place], image_size)
        except DataError as error:
            return error
        images[place] = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
        return None

    with ThreadPoolExecutor(decoding_threads()) as pool:
        errors = list(
            tqdm(
                pool.map(decode, range(len(files))),
                desc=f"decoding {listing.folder.name}/",
                total=len(files),
                unit="image",
                delay=1.0,
                mininterval=1.0,
                file=sys.stdout,
            )
        )
    bad = [error for error in errors if error]
    if len(bad) == len(files):
        raise DataError(f"none of the {len(files)} images can be read; of the first: {bad[0]}")
    keep = torch.tensor([error is None for error in errors])
    read = ids[keep.numpy()]
    split = Split(
        images[keep] if bad else images,
        torch.from_numpy(listing.labels[read]),
        torch.from_numpy(read),
        tuple(file for file, error in zip(files, errors, strict=True) if error is None),
    )
    return split, tuple(f for f, error in zip(files, errors, strict=True) if error is not None)


def _note_of_unreadable(files: Sequence[str]) -> list[str]:
    if not files:
        return []
    named = ", ".join(map(shown, files[:5])) + (", ..." if len(files) > 5 else "")
    return [f"{len(files)} image(s) can't be read and are left out: {named}."]
