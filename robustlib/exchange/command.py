"""The command that writes corrupted copies of your own images."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from robustlib import corruptions
from robustlib.core.checks import SEVERITIES, check_name, check_whole
from robustlib.core.command import exit_code
from robustlib.data import Split
from robustlib.data.folder import list_split
from robustlib.data.images import shown, warn_of_others
from robustlib.exchange.benchmark import Benchmark
from robustlib.exchange.files import SUFFIXES, decode, threads
from robustlib.exchange.writing import check_source, export_cifar_c, export_imagenet_c
from robustlib.perturbations import parse_options

_EPILOG = """\
The copies of a/b.jpg are FOLDER/<corruption>/<severity>/a/b.png, as in ImageNet-C.
Stop it whenever you like: the same command goes on where it stopped.

examples:
  %(prog)s my/images my-images-c
  %(prog)s my/images my-images-c --corruptions noc fog --severities 1 3 5
  %(prog)s my/images my-images-c --corruptions frost --options frost.photographs=my/frost
  %(prog)s my/images my-images-c --benchmark my-benchmark.json
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Write corrupted copies of your own images, for robustlib or other tools.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options: dict[str, dict[str, Any]] = {
        "source": {"metavar": "IMAGES", "help": "folder of images; its subfolders are kept"},
        "folder": {
            "metavar": "FOLDER",
            "help": "where the copies go; run again to go on or to add some",
        },
        "--corruptions": {
            "nargs": "+",
            "metavar": "NAME",
            "help": f"names, or suites: {', '.join(corruptions.suites())} (default: imagenet_c)",
        },
        "--severities": {"nargs": "+", "type": int, "metavar": "N", "help": "default: 1 to 5"},
        "--options": {
            "nargs": "+",
            "default": [],
            "metavar": "NAME.OPTION=VALUE",
            "help": f"options of corruptions: {', '.join(_known_options())}",
        },
        "--benchmark": {
            "metavar": "FILE",
            "help": "a benchmark, which says corruptions, severities, options and image size",
        },
        "--image-size": {
            "type": int,
            "metavar": "PX",
            "help": "resize and crop to squares (default: every image keeps its size)",
        },
        "--format": {"choices": list(SUFFIXES), "help": "default: png, which loses nothing"},
        "--seed": {"type": int, "default": 0, "metavar": "N", "help": "default: 0"},
        "--layout": {
            "choices": ["imagenet-c", "cifar-c"],
            "default": "imagenet-c",
            "help": "image files (default); or arrays, from folders of classes and --image-size",
        },
    }
    for name, option in options.items():
        parser.add_argument(name, **option)
    return parser


def _known_options() -> list[str]:
    names = corruptions.names()
    return [f"{name}.{option}" for name in names for option in corruptions.info(name).options]


def _run(args: argparse.Namespace) -> int:
    """Do what the command line asks for; returns how many images were written."""
    if args.benchmark is not None:
        _take_benchmark(args)
    else:
        names: dict[str, None] = {}
        for given in args.corruptions or ["imagenet_c"]:
            check_name(given, [*corruptions.names(), *corruptions.suites()], "corruption or suite")
            members = corruptions.names(given) if given in corruptions.suites() else (given,)
            names |= dict.fromkeys(members)
        args.corruptions, args.options = list(names), parse_options(args.options)
    if args.layout == "imagenet-c":
        return export_imagenet_c(
            args.source,
            args.folder,
            args.corruptions,
            severities=args.severities or SEVERITIES,
            options=args.options,
            image_size=args.image_size,
            image_format=args.format or "png",
            seed=args.seed,
        )
    if args.image_size is None or args.severities or args.format:
        raise ValueError(
            "--layout cifar-c needs --image-size, and takes neither --severities (it always "
            "holds all) nor --format."
        )
    image_size = check_whole(args.image_size, "image_size", low=1)
    check_source(Path(args.source), Path(args.folder))
    listing = list_split(Path(args.source))
    warn_of_others(listing.others, stacklevel=1)
    with threads() as pool:
        images = decode([listing.folder / f for f in listing.files], image_size, pool)
    labels = torch.from_numpy(listing.labels)
    split = Split(images, labels, torch.arange(len(images), device="cpu"), tuple(listing.files))
    return export_cifar_c(
        args.folder, split, args.corruptions, options=args.options, seed=args.seed
    )


def _take_benchmark(args: argparse.Namespace) -> None:
    """Fill in corruptions, severities, options and image size from a benchmark's file."""
    if args.corruptions or args.severities or args.options:
        raise ValueError(
            "--benchmark says which corruptions, severities and options; give it without them."
        )
    benchmark = Benchmark.load(args.benchmark)
    if benchmark.image_size not in (None, args.image_size or benchmark.image_size):
        raise ValueError(
            f"the benchmark {benchmark.name!r} is for images of {benchmark.image_size} px: leave "
            "--image-size out."
        )
    args.image_size = benchmark.image_size or args.image_size
    args.corruptions, args.options = list(benchmark.severities), benchmark.options
    if args.layout == "imagenet-c":
        args.severities = benchmark.severities
    elif any(sorted(some) != list(SEVERITIES) for some in benchmark.severities.values()):
        raise ValueError(
            f"--layout cifar-c holds all severities, but the benchmark {benchmark.name!r} only "
            "some; leave --layout out."
        )


def main(arguments: Sequence[str] | None = None, prog: str = "robustlib corrupt") -> int:
    """Run the command.

    arguments: those of the command line if None. prog: what the help calls the command.
    Returns the exit code: 0, 2 for bad input, 1 if the machine failed, say for a full disk, and
    130 if interrupted.
    """
    args = _parser(prog).parse_args(arguments)

    def work() -> str:
        written = _run(args)
        files = "<name>.npy" if args.layout == "cifar-c" else "<name>/<severity>/"
        place = shown(args.folder)
        return f"{written} images written; {place} is complete, as {files} for each corruption"

    return exit_code(work, prog)
