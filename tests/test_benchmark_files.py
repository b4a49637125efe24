from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from robustlib import models
from robustlib.cli import main
from robustlib.core.checks import UnknownNameError
from robustlib.corruptions import corrupt
from robustlib.data import Split
from robustlib.data import load as load_data
from robustlib.evaluation import evaluate
from robustlib.exchange import Benchmark, Stored


@pytest.fixture
def benchmark_of_two() -> Benchmark:
    return Benchmark(
        "two",
        "1.0",
        {"fog": [2, 4], "glass_blur": [3]},
        {"fog": 0.25, "glass_blur": 0.75},
        image_size=16,
        options={"glass_blur": {"swap": True}},
        provenance={"chosen by": "hand", "candidates": 15},
    )


@pytest.fixture
def path(benchmark_of_two, tmp_path) -> Path:
    benchmark_of_two.save(tmp_path / "two.json")
    return tmp_path / "two.json"


@pytest.fixture
def two_models() -> list[models.Classifier]:
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(48, 3)).eval()
        found.append(models.wrap(network, name=f"network {seed}"))
    return found


# --- The file ------------------------------------------------------------------------------------


def test_a_benchmark_survives_its_file(benchmark_of_two, path) -> None:
    found = Benchmark.load(str(path))
    assert found == benchmark_of_two
    assert found.provenance == {"chosen by": "hand", "candidates": 15}
    found.save(path.with_name("again.json"))
    assert path.with_name("again.json").read_bytes() == path.read_bytes()


def test_the_file_is_as_documented(path) -> None:
    assert json.loads(path.read_text()) == {
        "format_version": 1,
        "name": "two",
        "version": "1.0",
        "image_size": 16,
        "corruptions": [
            {"name": "fog", "severities": [2, 4], "weight": 0.25},
            {
                "name": "glass_blur",
                "severities": [3],
                "weight": 0.75,
                "options": {"swap": True},
            },
        ],
        "provenance": {"chosen by": "hand", "candidates": 15},
    }


def test_numbers_of_numpy_and_pandas_are_taken(tmp_path) -> None:
    severities = {name: [np.int64(3)] for name in ("fog", "snow", "frost")}
    weights = pd.Series({"fog": 1 / 3, "snow": 1 / 3, "frost": 1 / 3})
    found = Benchmark("three", "1", severities, weights, image_size=np.int64(32))
    found.save(tmp_path / "three.json")
    assert Benchmark.load(tmp_path / "three.json") == found
    assert found == Benchmark("three", "1", dict.fromkeys(severities, (3,)), image_size=32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version must be 1, which this robustlib reads, got 2"),
        ({"format_version": None}, "format_version must be 1"),
        ({"nmae": "x"}, "unknown key 'nmae'. Did you mean 'name'"),
        ({"name": ...}, "the key 'name' is missing"),
        ({"image_size": ...}, "the key 'image_size' is missing"),
        ({"name": ""}, "the name of a benchmark must be a text, got ''"),
        ({"version": 1.0}, "the version of a benchmark must be a text, got 1.0"),
        ({"image_size": 0}, "image_size must be an integer of at least 1, got 0"),
        ({"image_size": "32"}, "image_size must be an integer"),
        ({"provenance": "by hand"}, "provenance must be names and values"),
        ({"provenance": {"x": float("nan")}}, "the provenance must be .* for JSON"),
        ({"corruptions": []}, "the list of corruptions is empty"),
        ({"corruptions": {"fog": 1}}, "corruptions must be a list"),
        ({"corruptions": ["fog"]}, "a corruption must have the keys name, .* got 'fog'"),
    ],
)
def test_bad_files_are_refused(path, change, message) -> None:
    record = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in record.items() if value != ...}))
    with pytest.raises(ValueError, match=rf"the benchmark .*two\.json: {message}"):
        Benchmark.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fogg"}, "unknown corruption 'fogg'. Did you mean 'fog'"),
        ({"name": "glass_blur"}, "the list of corruptions repeats an entry"),
        ({"name": ["fog"]}, "unknown corruption"),
        ({"severity": 3}, "unknown key of a corruption 'severity'. Did you mean 'severities'"),
        ({"severities": ...}, "the key of a corruption 'severities' is missing"),
        ({"severities": []}, "the list of severities of fog is empty"),
        ({"severities": [3, 3]}, "the list of severities of fog repeats an entry"),
        ({"severities": [0]}, "severity must be an integer from 1 to 5, got 0"),
        ({"severities": [2.5]}, "severity must be an integer from 1 to 5, got 2.5"),
        ({"severities": 3}, "the severities of fog must be a list, got 3"),
        ({"weight": 0.5}, "the weights must sum to 1, got 1.25"),
        ({"weight": 0}, "the weight of fog must be a number above 0"),
        ({"weight": -0.25}, "the weight of fog must be a number above 0"),
        ({"weight": None}, "the weight of fog must be a number above 0"),
        ({"options": {"swap": True}}, "the corruption 'fog' takes no options, got 'swap'"),
        ({"options": []}, "options of fog must be names and values"),
    ],
)
def test_bad_corruptions_are_refused(path, change, message) -> None:
    record = json.loads(path.read_text())
    entry = record["corruptions"][0] | change
    record["corruptions"][0] = {key: value for key, value in entry.items() if value != ...}
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"the benchmark .*two\.json: {message}"):
        Benchmark.load(path)


def test_misspelt_names_in_files_are_errors_of_names(path) -> None:
    path.write_text(path.read_text().replace("glass_blur", "glas_blur"))
    with pytest.raises(UnknownNameError, match="Did you mean 'glass_blur'"):
        Benchmark.load(path)


def test_what_is_no_file_of_json_is_refused(path, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"can't read the benchmark .*none\.json"):
        Benchmark.load(tmp_path / "none.json")
    with pytest.raises(ValueError, match="can't read the benchmark"):
        Benchmark.load(tmp_path)
    for content in (b'{"name": ', b"\xff\xfe", b'{"name": 1, "name": 2}'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"two\.json is no benchmark in JSON"):
            Benchmark.load(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="format_version must be 1"):
        Benchmark.load(path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": {"fog": 1.0}}, "no weight is given for snow"),
        ({"weights": {"fog": 0.5, "snov": 0.5}}, "Did you mean 'snow'"),
        ({"severities": {}}, "is empty"),
        ({"severities": {"fog": [1], "snow": "1"}}, "the severities of snow must be a list"),
        ({"options": {"frost": {}}}, "corruption with options; named are 'frost'"),
        ({"provenance": {"seed": object()}}, "the provenance must be"),
    ],
)
def test_bad_benchmarks_are_refused(given, message) -> None:
    good = {"severities": {"fog": [1], "snow": [1, 2]}}
    with pytest.raises(ValueError, match=message):
        Benchmark("bad", "1", **(good | given))


def test_a_benchmark_names_no_folder(tmp_path) -> None:
    options = {"frost": {"photographs": tmp_path}}
    with pytest.raises(ValueError, match=r"can't hold frost\.photographs"):
        Benchmark("mine", "1", {"frost": [1]}, options=options)


# --- Its use -------------------------------------------------------------------------------------


def test_models_are_scored_in_three_lines(path, tiny, two_models, store) -> None:
    benchmark = Benchmark.load(path)
    grid = benchmark.perturbations(tiny.test)
    result = evaluate(two_models, tiny.test, grid, store=store, progress=False)
    scores = benchmark.score(result.table)
    assert list(scores.index) == list(dict.fromkeys(result.table["model"]))
    assert scores.name == "two"
    images, ids = tiny.test.float_images(), tiny.test.ids
    for model, score in zip(two_models, scores, strict=True):

        def accuracy(name, severity, model=model, **options) -> float:
            corrupted = corrupt(images, name, severity, 0, ids, **options)
            with torch.no_grad():
                right = model.model(corrupted).argmax(1) == tiny.test.labels
            return right.float().mean().item()

        fog = (accuracy("fog", 2) + accuracy("fog", 4)) / 2
        blur = accuracy("glass_blur", 3, swap=True)
        assert score == pytest.approx(0.25 * fog + 0.75 * blur)


def test_images_of_another_size_are_refused(benchmark_of_two, tiny) -> None:
    cells = benchmark_of_two.perturbations(tiny.test)
    assert [(cell.name, cell.severity) for cell in cells] == [
        *[("fog", 2), ("fog", 4)],
        ("glass_blur", 3),
    ]
    larger = Split(torch.zeros(1, 3, 20, 20, dtype=torch.uint8), [0], [0])
    with pytest.raises(ValueError, match="is for images of 16 px, but these have 20 px"):
        benchmark_of_two.perturbations(larger)
    assert len(Benchmark("any", "1", {"fog": [1]}).perturbations(larger)) == 1


def table(**changes) -> pd.DataFrame:
    rows = [
        {"model": model, "perturbation": name, "severity": severity, "accuracy": accuracy}
        | {"n": 10, "options": "swap=True" if name == "glass_blur" else ""}
        for model, start in (("b", 0.5), ("a", 0.0))
        for name, severity, accuracy in [
            *[("clean", 0, 0.9), ("fog", 1, 0.4), ("fog", 2, 0.2 + start), ("fog", 4, start)],
            *[("snow", 2, 0.3), ("glass_blur", 3, 0.4)],
        ]
    ]
    return pd.DataFrame(rows).assign(**changes)


def test_a_score_by_hand(benchmark_of_two) -> None:
    expected = {"b": 0.25 * 0.6 + 0.75 * 0.4, "a": 0.25 * 0.1 + 0.75 * 0.4}
    scores = benchmark_of_two.score(table())
    assert scores.to_dict() == pytest.approx(expected)
    assert list(scores.index) == ["b", "a"]
    read = pd.read_csv(io.StringIO(table().to_csv(index=False)))
    assert benchmark_of_two.score(read).to_dict() == pytest.approx(expected)


def test_a_table_that_does_not_fit_gives_no_score(benchmark_of_two) -> None:
    rows = table()
    for bad, message in (
        (rows.drop(index=3), "'b' was not evaluated under fog at severity 4"),
        (rows[rows["perturbation"] != "glass_blur"], "glass_blur at severity 3"),
        (rows.assign(accuracy=rows["accuracy"].mask(rows.index == 3)), "fog at severity 4"),
        (pd.concat([rows, rows.iloc[[2]]]), "'b' was evaluated more than once under fog at se"),
        (table(options=""), "glass_blur was evaluated with the options none, but .* has swap=True"),
        (rows.assign(n=[10] * 6 + [9] * 6), r"different numbers of images, \[9, 10\]"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmark_of_two.score(bad)


# --- The command ---------------------------------------------------------------------------------


def make_images(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        for i in range(2):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{i}.png")
    return root


def test_the_command_exports_exactly_the_benchmark(
    path, benchmark_of_two, tmp_path, two_models, store, capsys
) -> None:
    source, out = make_images(tmp_path / "photos/test"), tmp_path / "c"
    assert main(["corrupt", str(source), str(out), "--benchmark", str(path)]) == 0
    assert "12 images written" in capsys.readouterr().out
    written = sorted(str(file.relative_to(out)) for file in out.rglob("*.png"))
    cells = [("fog", 2), ("fog", 4), ("glass_blur", 3)]
    assert written == [f"{n}/{s}/{c}/{i}.png" for n, s in cells for c in "ab" for i in (0, 1)]
    make_images(source.parent / "train")
    split = load_data("folder", root=source.parent, image_size=16).test
    expected = [
        cell.apply(split.float_images(), split.labels, split.ids, None, 0)
        for cell in benchmark_of_two.perturbations(split)
    ]
    stored = [Stored(name, severity, out) for name, severity in cells]
    for cell, images in zip(stored, expected, strict=True):
        found = cell.apply(split.float_images(), split.labels, split.ids, None, 0)
        assert torch.equal(found, images.mul(255).round() / 255)
    result = evaluate(two_models, split, stored, store=store, progress=False)
    assert benchmark_of_two.score(result.table).between(0, 1).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--corruptions", "fog"], "give it without them"),
        (["--severities", "1"], "give it without them"),
        (["--options", "glass_blur.swap=true"], "give it without them"),
        (["--image-size", "32"], "'two' is for images of 16 px: leave --image-size out"),
        (["--layout", "cifar-c"], "holds all severities, but the benchmark 'two' only some"),
    ],
)
def test_what_contradicts_a_benchmark_is_one_line(path, tmp_path, capsys, more, message) -> None:
    source = make_images(tmp_path / "photos")
    arguments = ["corrupt", str(source), str(tmp_path / "c"), "--benchmark", str(path)]
    assert main([*arguments, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("robustlib corrupt: ")
    assert message in line
    assert not (tmp_path / "c").exists()


def test_a_benchmark_of_all_severities_can_be_arrays(tmp_path) -> None:
    source, out = make_images(tmp_path / "photos/test"), tmp_path / "c"
    Benchmark("all", "1", {"fog": [5, 4, 3, 2, 1]}, image_size=16).save(tmp_path / "all.json")
    arguments = ["corrupt", str(source), str(out), "--benchmark", str(tmp_path / "all.json")]
    assert main([*arguments, "--layout", "cifar-c", "--image-size", "16"]) == 0
    assert np.load(out / "fog.npy").shape == (20, 16, 16, 3)


def test_a_bad_file_is_one_line(tmp_path, capsys) -> None:
    source = make_images(tmp_path / "photos")
    arguments = ["corrupt", str(source), str(tmp_path / "c"), "--benchmark", "none.json"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't read the benchmark none.json: No such file" in line
