"""Corrupted copies of your own images: `python -m robustlib.exchange my/images my-images-c`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustlib import corruptions
from robustlib.core.checks import SEVERITIES, check_name
from robustlib.data import Split
from robustlib.data.folder import list_split
from robustlib.exchange.files import decode, threads
from robustlib.exchange.writing import (
    FORMATS,
    check_image_size,
    check_source,
    export_cifar_c,
    export_imagenet_c,
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m robustlib.exchange",
        description="Write corrupted copies of your own images, for robustlib or other tools.",
    )
    options: dict[str, dict[str, Any]] = {
        "source": {"help": "folder of images; its subfolders are kept"},
        "folder": {"help": "where the copies go; run again to go on or to add some"},
        "--corruptions": {
            "nargs": "+",
            "default": ["imagenet_c"],
            "metavar": "NAME",
            "help": f"names, or suites: {', '.join(corruptions.suites())} (default: imagenet_c)",
        },
        "--severities": {"nargs": "+", "type": int, "metavar": "N", "help": "default: 1 to 5"},
        "--image-size": {"type": int, "metavar": "PX", "help": "resize and crop to squares"},
        "--format": {"choices": list(FORMATS), "help": "default: png"},
        "--seed": {"type": int, "default": 0, "help": "default: 0"},
        "--layout": {
            "choices": ["imagenet-c", "cifar-c"],
            "default": "imagenet-c",
            "help": "image files (default); or arrays, from folders of classes and --image-size",
        },
    }
    for name, option in options.items():
        parser.add_argument(name, **option)
    return parser


def _run(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns how many images were written."""
    names: dict[str, None] = {}
    for given in args.corruptions:
        check_name(given, [*corruptions.names(), *corruptions.suites()], "corruption or suite")
        members = corruptions.names(given) if given in corruptions.suites() else (given,)
        names |= dict.fromkeys(members)
    if args.layout == "imagenet-c":
        return export_imagenet_c(
            args.source,
            args.folder,
            list(names),
            severities=args.severities or SEVERITIES,
            image_size=args.image_size,
            image_format=args.format or "png",
            seed=args.seed,
        )
    if args.image_size is None or args.severities or args.format:
        raise ValueError(
            "--layout cifar-c needs --image-size, and takes neither --severities (it always "
            "holds all) nor --format."
        )
    check_image_size(args.image_size)
    check_source(Path(args.source), Path(args.folder))
    listing = list_split(Path(args.source))
    with threads() as pool:
        images = decode([listing.folder / f for f in listing.files], args.image_size, pool)
    split = Split(images, torch.from_numpy(listing.labels), torch.arange(len(images)))
    return export_cifar_c(args.folder, split, list(names), seed=args.seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 2 for bad input, 130 if interrupted."""
    args = _parser().parse_args(arguments)
    try:
        written = _run(args)
    except (ValueError, OSError) as error:
        print(f"exchange: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nexchange: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    files = "<name>.npy" if args.layout == "cifar-c" else "<name>/<severity>/"
    print(f"{written} images written; {args.folder} is complete, as {files} for each corruption")
    return 0


if __name__ == "__main__":
    sys.exit(main())
