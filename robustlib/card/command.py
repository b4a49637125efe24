"""`robustlib card MODEL IMAGES`: a report card; with two models, two cards and a comparison."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from robustlib import attacks, corruptions
from robustlib.analysis.references import Reference
from robustlib.card.card import DATA, NONE, Card, make_card
from robustlib.card.comparison import compare
from robustlib.card.images import NAMED, load_images
from robustlib.card.measure import Measured, measure
from robustlib.card.model import CardModel, load_model
from robustlib.card.protocol import Protocol
from robustlib.card.slips import slips
from robustlib.core.checks import as_number, check_name, check_number
from robustlib.core.command import exit_code
from robustlib.core.paths import store_dir
from robustlib.core.store import Store

_FEW = 200  # images on which slips are looked for, before the others are read
_EPILOG = """
examples:
  %(prog)s resnet50 photos/val --weights resnet50.safetensors --classes imagenet.txt \\
      --mean 0.485 0.456 0.406 --std 0.229 0.224 0.225
  %(prog)s exported.pt photos --image-size 256 --budget 10
  %(prog)s mymodule:build cifar10 --image-size 32 --stored CIFAR-10-C --data cifar10
  %(prog)s old.pt new.pt photos --classes classes.txt
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="How robust is a classifier on your images? Writes a page and a JSON file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a name that torchvision knows, timm:NAME or robustlib:NAME, with --weights; a "
        "TorchScript file; or module:function, which builds the network. Two are compared",
    )
    add("images", metavar="IMAGES", help=f"folder of class folders, or one of {', '.join(NAMED)}")
    model = parser.add_argument_group("model; with two, give an option twice if they differ")
    two: dict[str, Any] = {"action": "append", "default": []}
    model.add_argument("--weights", metavar="FILE", help="safetensors or state dict", **two)
    model.add_argument("--name", metavar="NAME", help="what the card calls it", **two)
    model.add_argument(
        "--mean", nargs=3, metavar=("R", "G", "B"), help="if it wants normalised images", **two
    )
    model.add_argument("--std", nargs=3, metavar=("R", "G", "B"), help="see --mean", **two)
    model.add_argument("--bgr", action="store_true", help="it wants blue, green, red")
    model.add_argument("--output", metavar="KEY", help="where the logits are in what it returns")
    model.add_argument("--trust", action="store_true", help="read pickles, which can run any code")
    model.add_argument("--device", default="auto", metavar="D", help="cpu, cuda or auto (default)")
    images = parser.add_argument_group("images")
    images.add_argument("--image-size", type=int, default=224, metavar="PX", help="default: 224")
    images.add_argument(
        "--classes", metavar="FILE", help="a class a line, in the order of the model's outputs"
    )
    images.add_argument("--n", type=int, default=0, help="balanced part of so many (default: all)")
    images.add_argument(
        "--stored", metavar="FOLDER", help="corrupted versions of them, such as CIFAR-10-C"
    )
    what = parser.add_argument_group("what to measure")
    what.add_argument(
        "--corruptions",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"names, or suites: {', '.join(corruptions.suites())} (default: imagenet_c)",
    )
    what.add_argument(
        "--severities",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="default: 1 to 5 up to 64 px, else 1 3 5",
    )
    what.add_argument(
        "--attacks",
        nargs="+",
        default=list(attacks.FIVE),
        metavar="NAME",
        help=f"default: {' '.join(attacks.FIVE)}",
    )
    what.add_argument(
        "--attacked", type=int, default=50, metavar="N", help="images attacked (default: 50)"
    )
    what.add_argument(
        "--checked",
        type=int,
        metavar="N",
        help="checked for masked gradients (default: 20 up to 64 px, else 10)",
    )
    what.add_argument("--eps", metavar="R", help="Linf radius, such as 2/255")
    what.add_argument(
        "--budget", metavar="MINUTES", help="measure as many images as fit (default: all)"
    )
    what.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    beside = parser.add_argument_group("what to stand beside")
    beside.add_argument(
        "--data",
        choices=[*DATA, NONE],
        help="published accuracies (default: imagenet for 1000 classes above 64 px)",
    )
    beside.add_argument(
        "--reference", metavar="CARD", help="a card's JSON, whose errors divide in the mCE"
    )
    add("--no-images", action="store_true", help="show none, if they may not be published")
    add("--out", default="cards", metavar="FOLDER", help="where the cards go (default: cards)")
    return parser


def _run(args: argparse.Namespace) -> list[Path]:
    """Do what the command line asks for; returns the pages that were written."""
    from robustlib.card.page import file_name  # late: its imports take seconds

    if len(args.models) > 2:
        raise ValueError(
            f"one model or two can be given before the images, got {len(args.models)}."
        )
    reference = None if args.reference is None else Card.load(args.reference).as_reference()
    protocol = Protocol(
        args.image_size,
        corruptions=_corruptions(args),
        severities=tuple(args.severities),
        stored=None if args.stored is None else Path(args.stored),
        attacks=tuple(args.attacks),
        attacked=args.attacked,
        checked=args.checked,
        eps=args.eps,
        seed=args.seed,
    )
    budget = None
    if args.budget is not None:
        budget = check_number(args.budget, "--budget", low=0, above=True, unit="minutes")
    reading = {"image_size": args.image_size, "classes": args.classes}
    models = [_model(args, place) for place in range(len(args.models))]
    names = [file_name(model.classifier.recipe) for model in models]
    if len(set(names)) < len(names):
        raise ValueError(f"both cards would be called {names[0]!r}; give each model a --name.")
    measured: list[Measured] = []
    pages = []
    for model in models:
        print(f"{model.classifier.recipe}: {' '.join(model.notes)}".rstrip(": "))
        few = load_images(args.images, n=_FEW, **reading, outputs=model.outputs)
        for note in few.notes:
            print(note)
        suspicious = slips(model, few)
        for slip in suspicious:
            print(f"Careful: {slip.found} {slip.advice}")
        images = load_images(args.images, n=args.n, **reading, outputs=model.outputs)
        found = measure(
            model,
            images,
            protocol,
            store=Store(),
            budget=budget,
            found=suspicious,
            say=tqdm.write,
        )
        measured.append(found)
        pages.append(_write(found, args, reference))
    if len(measured) == 2:
        pages.append(_write_comparison(measured, Path(args.out), names))
    return pages


def _corruptions(args: argparse.Namespace) -> tuple[str, ...]:
    if args.stored is not None:
        return tuple(args.corruptions)
    names: dict[str, None] = {}
    for given in args.corruptions:
        check_name(given, [*corruptions.names(), *corruptions.suites()], "corruption or suite")
        members = corruptions.names(given) if given in corruptions.suites() else (given,)
        names |= dict.fromkeys(members)
    return tuple(names)


def _model(args: argparse.Namespace, place: int) -> CardModel:
    def of(option: str) -> Any:
        given = getattr(args, option)
        if len(given) > len(args.models):
            raise ValueError(
                f"--{option} is given {len(given)} times for {len(args.models)} models."
            )
        return given[min(place, len(given) - 1)] if given else None

    mean, std = ([as_number(value) for value in of(o)] if of(o) else None for o in ("mean", "std"))
    return load_model(
        args.models[place],
        image_size=args.image_size,
        weights=of("weights"),
        name=of("name"),
        mean=mean,
        std=std,
        bgr=args.bgr,
        output=args.output,
        trust=args.trust,
        device=args.device,
    )


def _write(measured: Measured, args: argparse.Namespace, reference: Reference | None) -> Path:
    from robustlib.card.figures import figures  # late: matplotlib takes seconds
    from robustlib.card.page import write_card
    from robustlib.study import plotting

    plotting.use_style()
    card = make_card(measured, data=args.data, reference=reference)
    for line in card.advice:
        print(line)
    drawn = figures(measured, card, images=not args.no_images)
    return write_card(card, drawn, args.out)


def _write_comparison(measured: Sequence[Measured], folder: Path, names: Sequence[str]) -> Path:
    from robustlib.card import figures
    from robustlib.card.page import comparison_page

    first, second = (found.model.classifier.recipe for found in measured)
    gains = compare(*measured)
    gains.to_csv(folder / f"{names[1]}-over-{names[0]}.csv", index=False, float_format="%.6g")
    page = folder / f"{names[1]}-over-{names[0]}.html"
    page.write_text(comparison_page(gains, figures.gains(gains), first, second), "utf-8")
    chosen = gains[gains["perturbation"].isin(["clean", "all corruptions"])]
    for row in chosen.itertuples():
        print(
            f"{second} over {first}, {row.perturbation}: {row.gain:+.1f} points "
            f"({row.low:+.1f} to {row.high:+.1f})"
        )
    return page


def main(arguments: Sequence[str] | None = None, prog: str = "robustlib card") -> int:
    """Run the command.

    arguments: those of the command line if None. prog: what the help calls the command.
    Returns the exit code: 0, 2 for bad input, 1 if the machine failed, say for a full disk, and
    130 if interrupted.
    """
    args = _parser(prog).parse_args(arguments)

    def work() -> str:
        pages = ", ".join(map(str, _run(args)))
        return f"Answers are kept in {store_dir()}; the card: {pages}"

    return exit_code(work, prog)
