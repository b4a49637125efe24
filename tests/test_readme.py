"""The commands in the README exist."""

from __future__ import annotations

import json
import re
import shlex
import statistics
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from robustlib import cli, corruptions
from robustlib.card.command import _parser
from robustlib.data import Split
from robustlib.exchange import export_cifar_c
from robustlib.recipes import MTLAT, Standard
from robustlib.recipes.cost import epochs_of_equal_compute
from robustlib.study.declarations import declared

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line.removeprefix("$ "), comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if line.split("#")[0].strip()
]


def commands(word: str) -> list[list[str]]:
    """The commands that contain `word` or a path ending in it, from that word on."""
    found = []
    for command in COMMANDS:
        for position, part in enumerate(command):
            if Path(part).name == word:
                found.append(command[position + 1 :])
                break
    return found


def given_parameters(arguments: list[str]) -> list[str]:
    flags = ("-p", "-r", "--parameters", "--parameters_raw")
    return [arguments[i + 1] for i, part in enumerate(arguments) if part in flags]


def test_the_readme_gives_the_two_commands() -> None:
    targets = [target for arguments in commands("make") for target in arguments[:1]]
    assert "study" in targets


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_targets_exist(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        if "=" in argument:
            assert argument.partition("=")[0] in ("ARGS", "PYTHON")
        else:
            assert re.search(rf"^{re.escape(argument)}:", makefile, re.MULTILINE), argument


@pytest.mark.parametrize("arguments", commands("papermill"), ids=" ".join)
def test_papermill_commands_name_notebooks_and_parameters(arguments: list[str]) -> None:
    notebook = ROOT / arguments[0]
    assert notebook.is_file()
    names = declared(notebook)
    assert set(given_parameters(arguments)) <= set(names)
    for flag, value in pairwise(arguments):
        if flag in ("-f", "--parameters_file"):
            assert (ROOT / value).is_file()


STUDY = [
    arguments
    for arguments in [
        *commands("robustlib.study"),
        *(
            shlex.split(a.removeprefix("ARGS="))
            for m in commands("make")
            for a in m
            if "ARGS=" in a
        ),
    ]
    if "-p" in arguments
]


@pytest.mark.parametrize("arguments", STUDY, ids=" ".join)
def test_study_commands_name_parameters(arguments: list[str]) -> None:
    names = {name for path in (ROOT / "notebooks").glob("*.ipynb") for name in declared(path)}
    assert set(given_parameters(arguments)) <= names


@pytest.mark.parametrize(
    "target",
    sorted(
        set(re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", (ROOT / "README.md").read_text()))
    ),
)
def test_relative_links_exist(target: str) -> None:
    if not target.startswith("reports/"):
        assert (ROOT / target).exists()


def test_the_command_for_own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = [found for found in commands("robustlib") if found[0] == "corrupt"]
    _, source, target = command
    Path(source).mkdir(parents=True)
    Image.new("RGB", (40, 33)).save(Path(source) / "a.jpg")
    assert cli.main(command) == 0
    assert len(list(Path(target).glob("*/*/a.png"))) == 19 * 5
    options = set(
        re.findall(r"`(--[a-z-]+)", README.split("## Corrupt a folder")[1].split("##")[0])
    )
    known = {"--corruptions", "--severities", "--image-size", "--format", "--layout", "--options"}
    assert options == known


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
def test_the_command_for_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTLIB_STORE", str(tmp_path / "store"))
    (command,) = [found for found in commands("robustlib") if found[0] == "card"]
    _, model, images, *options = command
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    torch.jit.trace(network.eval(), torch.zeros(1, 3, 224, 224)).save(model)  # type: ignore[no-untyped-call]
    for i, colour in enumerate(("red", "lime", "blue")):
        place = Path(images) / "abc"[i]
        place.mkdir(parents=True)
        Image.new("RGB", (260, 300), colour).save(place / "photo.jpg")
    assert cli.main(["card", model, images, *options, "--attacks", "fgsm", "--checked", "0"]) == 0
    assert Path("cards", "my-model.html").is_file()
    section = README.split("## A report card of your model")[1].split("##")[0]
    known = _parser("robustlib card").format_help()
    assert all(option in known for option in re.findall(r"--[a-z-]+", section))


PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_ten_lines_evaluate_ones_own_model() -> None:
    (block,) = [block for block in PYTHON if "models.wrap" in block]
    assert len([line for line in block.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("block", PYTHON)
def test_python_examples_run(
    block: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    split = Split(images, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    export_cifar_c("CIFAR-10-C", split, ["fog", "contrast"], progress=False)
    exec(compile(block, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_m_tlat_shown_is_that_of_the_run_of_record() -> None:
    """Every number of the README's table, at equal compute, and of the sentences below it."""
    folder = ROOT / "results" / "cifar10"
    at = "comparison == 'equal compute'"
    levels = pd.read_csv(folder / "mtlat_levels.csv").query(at).set_index(["recipe", "group"])
    errors = pd.read_csv(folder / "mtlat_mce.csv").query(at).set_index("recipe")
    single = pd.read_csv(folder / "mtlat_intervals.csv").set_index(["recipe", "perturbation"])
    assert (levels["seeds"] >= 3).all()
    had = json.loads((folder / "03_mtlat.json").read_text())["parameters"]
    longer = epochs_of_equal_compute(Standard(), epochs=had["epochs"], reference=MTLAT())
    section = " ".join(README.split("## Can one training method")[1].split("##")[0].split())
    assert (had["epochs"], had["finetune_epochs"]) == (6, 0)
    assert "as M-TLAT in six epochs" in section
    assert f"the standard model has been trained for {longer}." in section
    assert f"{had['n_test']:,} test images, of which {had['n_attack']:,} are attacked" in section
    assert had["eps_test"] == pytest.approx(2 / 255, abs=2e-4)
    shown = re.search(r"<!-- result -->\n(.*)<!-- /result -->", README, re.DOTALL)
    assert shown
    printed = [line.strip("| ").split(" | ") for line in shown[1].splitlines()[2:]]
    assert [row[0] for row in printed] == list(levels.index.unique("recipe"))
    for recipe, *cells in printed:
        twin = f"{recipe}, equal compute"
        evaluated = twin if (twin, "strong") in single.index else recipe
        rows = [
            (levels.loc[recipe, "clean images"], "accuracy", 100),
            (levels.loc[recipe, "nineteen corruptions"], "accuracy", 100),
            (errors.loc[recipe], "mce", 1),
            (levels.loc[recipe, "five attacks"], "accuracy", 100),
            (single.loc[evaluated, "strong"], "accuracy", 100),
        ]
        for cell, (row, value, scale) in zip(cells, rows, strict=True):
            half = f"{scale * (row['high'] - row['low']) / 2:.1f}"
            assert cell == f"{scale * row[value]:.1f}" + (f" ± {half}" if float(half) else "")
    shown = re.search(r"<!-- mtlat -->\n(.*)<!-- /mtlat -->", README, re.DOTALL)
    assert shown
    text = " ".join(shown[1].split())
    gains = pd.read_csv(folder / "mtlat_gains.csv").query("recipe == 'mtlat'")
    over = pd.read_csv(folder / "mtlat_over.csv").query(at)

    def spans(rows: pd.DataFrame) -> list[str]:
        assert list(rows["group"]) == ["clean images", "nineteen corruptions", "five attacks"]
        points = (100 * rows[["gain", "low", "high"]]).itertuples(index=False)
        return [f"{gain:.1f} ({low:.1f} to {high:.1f})" for gain, low, high in points]

    assert (
        "gains {} points on clean images, {} on the nineteen corruptions and {} under the five "
        "attacks".format(*spans(gains.query(at)))
    ) in text
    steps = spans(gains.query("comparison == 'equal steps'"))
    assert "at equal steps {}, {} and {}.".format(*steps) in text
    added = "{} points on clean images, {} on corruptions and {} under attack".format
    over_fgsm, by_mixup = (spans(over[over["over"] == name]) for name in ("fgsm", "mtlat_unmixed"))
    assert f"FGSM training it gains {added(*over_fgsm)}." in text
    assert f"Mixup adds {added(*by_mixup)}: M-TLAT" in text
    claims = pd.read_csv(folder / "claims_mtlat.csv")
    mine = claims[claims["statement"].str.startswith("M-TLAT (weight = radius)")]
    assert (
        "no loss of clean accuracy is {0} at equal steps and {3} at equal compute, more accuracy "
        "on corruptions {1} and {4}, under attack **{2}** and **{5}**.".format(*mine["verdict"])
    ) in text
    assert "at equal compute is clearly more than the margin of one point" in text
    assert mine.query("test == 'non-inferiority'")["high"].iloc[1] < -0.01
    assert "decide little of twelve claims" in text
    assert (len(claims), set(claims["seeds"])) == (12, {3})
    of_epochs = pd.read_csv(folder / "mtlat_levels.csv").set_index(["recipe", "group"])
    fewer, more = of_epochs.loc[("standard", "clean images"), "accuracy"]
    assert f"gains {100 * (more - fewer):.1f} points on clean images from six epochs to" in text
    picked = dict(each.split(".eps=") for each in had["hyperparameters"] if ".eps=" in each)
    trained = [
        picked[f"mtlat{kind}"].removesuffix("/255") for kind in ("", "_weight", "_augmented")
    ]
    assert "radii up to {}, {} and {}/255, `tlat` and `fgsm` up to".format(*trained) in section
    assert f"up to {picked['tlat']}, `pgd` with {picked['pgd']}." in section
    assert picked["tlat"] == picked["fgsm"]
    single = pd.read_csv(folder / "mtlat_by_perturbation.csv").query(f"{at} and recipe == 'mtlat'")
    single = single.set_index("perturbation").loc[list(corruptions.names("imagenet_c"))]
    assert f"model on {(single['low'] > 0).sum()} of the nineteen corruptions" in text
    worse = ", ".join(single.index[single["high"] < 0]) or "none"
    assert f"clearly worse on {worse}." in text
    ablated = pd.read_csv(folder / "mtlat_ablation.csv").set_index("variant")
    fgsm, pgd = 100 * ablated.loc["label weight 0.5", ["fgsm", "pgd"]]
    assert f"at 0.5, {fgsm:.0f} % withstand FGSM, but {pgd:.0f} % PGD" in text
    passed = pd.read_csv(folder / "mtlat_sanity.csv")["passed"]
    assert f"Of {len(passed)} checks for [masked gradients]" in text
    assert f", {passed.sum()} pass." in text


def test_the_pictures_exist() -> None:
    pictures = re.findall(r'<img src="([^"]+)"', README)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).is_file()


def test_fidelity_and_speed_shown_are_those_measured() -> None:
    shown = re.search(r"<!-- corruptions -->\n(.*)<!-- /corruptions -->", README, re.DOTALL)
    assert shown
    text = " ".join(shown[1].split())
    fidelity = pd.read_csv(ROOT / "results/fidelity.csv")
    assert f"{fidelity['passed'].sum()} of {len(fidelity)} comparisons" in text
    assert fidelity["passed"].all()
    speed = pd.read_csv(ROOT / "results/speed.csv").query("device == 'cpu'")
    for threads, words in ((1, "On one thread each"), (2, "on two threads each")):
        rows = speed[speed["threads"] == threads].groupby("size")["times_faster"]
        means = rows.agg(statistics.geometric_mean)
        assert f"{words} {means[32]:.1f} times as fast at 32 px and {means[224]:.1f} times" in text
    slower = speed[(speed["times_faster"] < 1) & (speed["threads"] == 1)]
    said = re.findall(r"(\w+) at (\d+) px, at ([\d.]+) of its speed", text)
    assert [(name, int(size)) for name, size, _ in said] == list(
        zip(slower["corruption"], slower["size"], strict=True)
    )
    for ratio, (*_, number) in zip(slower["times_faster"], said, strict=True):
        assert float(number) == pytest.approx(ratio, abs=0.00501)


def test_the_atlas_shown_is_that_of_the_run_of_record() -> None:
    shown = re.search(r"<!-- atlas -->\n(.*)<!-- /atlas -->", README, re.DOTALL)
    assert shown
    text = " ".join(shown[1].split())
    folder = ROOT / "results" / "cifar10"
    numbers = pd.read_csv(folder / "effective_numbers.csv").query("order == 1")
    fifteen, noc = (
        numbers.set_index("benchmark").loc[name] for name in ("ImageNet-C, 15", "ImageNet-NOC")
    )
    worth = [f"{n.effective_number:.1f} ({n.low:.1f} to {n.high:.1f})" for n in (fifteen, noc)]
    assert f"fifteen, {fifteen.corruptions:.0f} have a score. They are worth {worth[0]}" in text
    assert f"the eight of ImageNet-NOC, {worth[1]}" in text
    assert noc.corruptions == 8
    mantel = pd.read_csv(folder / "published_mantel.csv").query("correlation != 'plain'")
    ours, others = (
        mantel.set_index("predicted by").loc[name] for name in ("our overlap", "models on cifar100")
    )
    assert f"of {ours.r:.2f} ({ours.low:.2f} to {ours.high:.2f} over papers)" in text
    assert f"CIFAR-100 with {others.r:.2f}" in text
    four = pd.read_csv(folder / "chosen.csv").query("size == 4").set_index("choice")
    chosen, best = four.loc["chosen by overlap, weighted"], four.loc["best in hindsight"]
    assert f"all fifteen by {100 * chosen.rmse:.1f} points" in text
    assert f"better than {100 * chosen.better_than_random:.0f} % of all choices of four" in text
    assert f"in hindsight misses it by {100 * best.rmse:.1f}." in text
    apart = four.loc["least overlap within (NOC's idea)"]
    assert f"overlap least misses it by {100 * apart.rmse:.1f} points, better than " in text
    assert f"points, better than {100 * apart.better_than_random:.0f} %." in text
    claims = pd.read_csv(folder / "claims_overlap.csv").set_index("measure")
    share = claims.loc["share of 15 corruptions of ImageNet-C that is redundant"]
    assert f"fewer than half as many is **{share.verdict}**" in text
    ends = f"{100 * share.low:.0f} to {100 * share.high:.0f}"
    assert f"{100 * share.value:.0f} % of them ({ends}) are redundant" in text
    agreement = pd.read_csv(folder / "overlap_agreement.csv")
    between = agreement.loc[agreement["of"].str.startswith("seeds"), "spearman"]
    assert "rank correlations of {:.2f}, {:.2f} and {:.2f}".format(*between) in text
    other = ROOT / "results" / "small_vgg"
    beside = (
        pd.read_csv(other / "overlap_agreement.csv").set_index("of").loc["cifar10 and small_vgg"]
    )
    span = f"{beside.spearman:.2f} ({beside.low:.2f} to {beside.high:.2f})"
    assert f"rank correlation of {span} over {beside.names:.0f} of the fifteen" in text
    theirs = pd.read_csv(other / "claims_overlap.csv").set_index("measure").loc[share.name]
    assert f"and finds {100 * theirs.value:.0f} % redundant" in text
    models = pd.read_csv(folder / "overlap_accuracy.csv")
    assert f"{len(models) * share.seeds:.0f} networks" in " ".join(README.split())


def test_the_bet_is_that_of_the_run_of_record() -> None:
    shown = re.search(r"<!-- bet -->\n(.*)<!-- /bet -->", README, re.DOTALL)
    assert shown
    text = " ".join(shown[1].split())
    folder = ROOT / "results" / "cifar10"
    papers = ("independence", "mtlat", "overlap")
    claims = pd.concat([pd.read_csv(folder / f"claims_{paper}.csv") for paper in papers])
    assert (claims["seeds"] >= 3).all()
    counts = claims["verdict"].value_counts()
    assert (
        f"Of {len(claims)} claims, {counts['supported']} are supported on CIFAR-10, "
        f"{counts.get('contradicted', 0)} contradicted and {counts.get('undecided', 0)} undecided."
    ) in text
    margins = claims.groupby("test")["above"].unique()
    assert margins["non-inferiority"] == [-0.01]
    assert margins["equivalence"] == [-0.1]
    made = {
        path.stem: datetime.fromisoformat(json.loads(path.read_text())["date"])
        for path in folder.glob("0*.json")
    }
    drawn = made.pop("06_synthesis")
    assert all(drawn >= made[name] for name in made if name.startswith(("02", "03", "04")))


def test_independence_shown_is_that_of_the_run_of_record() -> None:
    shown = re.search(r"<!-- independence -->\n(.*)<!-- /independence -->", README, re.DOTALL)
    assert shown
    text = " ".join(shown[1].split())
    folder = ROOT / "results" / "cifar10"
    pairs = pd.read_csv(folder / "adversarial_overlap.csv").query("method == 'pgd'")
    by_radius = pairs.groupby("radius")
    assert list(by_radius.groups) == [0.5, 1, 2, 4, 8]
    assert set(by_radius.size()) == {42}
    helps = by_radius["gain_low"].agg(lambda low: (low > 0).sum())
    harms = by_radius["gain_high"].agg(lambda high: (high < 0).sum())
    assert "helps on {}, {}, {}, {} and {} of 42".format(*helps) in text
    assert "harms on {}, {}, {}, {} and {}.".format(*harms) in text
    near = pairs[pairs["radius"] == 2]
    gain = 100 * near.set_index("corruption")["gain"]
    of_clean = pd.read_csv(folder / "adversarial_gains.csv").query(
        "method == 'pgd' and radius == 2 and `tested on` == 'clean images'"
    )
    clean = -100 * of_clean["gain"].item()
    assert f"gains {gain['gaussian_noise']:.1f} points on gaussian_noise and loses" in text
    assert f"loses {-gain['fog']:.1f} on fog and {clean:.1f} on clean images" in text
    verdicts = near["verdict"].value_counts()
    kinds = ("linked", "antagonistic", "independent", "undecided")
    counts = [verdicts.get(kind, 0) for kind in kinds]
    assert (
        "{} corruptions are linked, {} antagonistic, {} independent and {} undecided".format(
            *counts
        )
        in text
    )
    decided = near["verdict_holm"].isin(kinds[:3]).sum()
    assert f"the 42, three seeds decide {decided}." in text
    beside = pd.read_csv(folder / "adversarial_published.csv")
    same = beside[beside["agreement"] == "agree"]
    assert set(beside["agreement"]) == {"agree", "undecided"}
    assert (
        f"Of {len(beside)} corruptions that Kireev et al. (2022) measured at 1/255 with a larger "
        f"network, {(same['gain'] > 0).sum()} gain and {(same['gain'] < 0).sum()} lose in both, "
        f"none has opposite signs, and {len(beside) - len(same)} are undecided here"
    ) in text
    gains = pd.read_csv(folder / "unseen_gains.csv").query("unseen == 'not trained with'")
    gains = 100 * gains.set_index("set")["gain"]
    random = gains[gains.index.str.startswith("random")]
    assert (
        f"gain {gains['chosen']:.1f} points on 19 others; random sets of four gain "
        f"{random.min():.1f} to {random.max():.1f}, and {(random < gains['chosen']).sum()} of "
        f"{len(random)} of them gain less; all 23 candidates together gain {gains['all']:.1f}."
    ) in text


def test_the_gallery_shown_is_that_of_the_run_of_record() -> None:
    shown = re.search(r"<!-- gallery -->\n(.*)<!-- /gallery -->", README, re.DOTALL)
    assert shown
    text = " ".join(shown[1].replace("**", "").split())
    folder = ROOT / "results" / "cifar10"
    record = json.loads((folder / "00_start_here.json").read_text())["parameters"]
    assert record["recipes"] == ["standard", "fgsm"]
    assert record["eps_test"] == pytest.approx(2 / 255)
    assert len(record["seeds"]) == 3
    measured = pd.read_csv(folder / "start_here.csv")
    accuracy = 100 * measured.pivot(index="perturbation", columns="recipe", values="accuracy")
    words = {
        "clean": "clean",
        "pgd": "under attack",
        "gaussian_noise": "in noise",
        "fog": "but in fog",
    }
    for name, said in words.items():
        both = accuracy.loc[name, ["standard", "fgsm"]]
        assert "{} {:.1f} and {:.1f}".format(said, *both) in text
