from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import corruptions as speed
from benchmarks import run
from robustlib.corruptions import corrupt, info, names
from robustlib.data import Dataset

COLUMNS = ["measure", "case", "robustlib", "compared with", "other", "ratio", "ratio means"]


def check(table: pd.DataFrame) -> None:
    assert list(table) == COLUMNS
    assert (table[["robustlib", "other"]] > 0).all(axis=None)


def test_every_task_runs_once_to_warm_up_and_then_in_turns() -> None:
    calls: list[str] = []
    seconds = run.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert "".join(calls) == "ababab"
    assert list(seconds) == ["a", "b"]


def test_training_throughput(tiny: Dataset) -> None:
    table = run.training_throughput(tiny, batch_size=32, workers=0, repeats=1)
    check(table)
    assert table["measure"].tolist() == ["training, images/s"] * 2
    assert table["compared with"].str.contains("CIFAR10|ImageFolder").all()
    assert table["ratio"].tolist() == pytest.approx((table["robustlib"] / table["other"]).tolist())


def test_recipe_costs(tiny: Dataset) -> None:
    table = run.recipe_costs(tiny, batch_size=8, steps=1, repeats=1)
    check(table)
    assert table["case"].tolist() == [recipe.name for recipe in run.RECIPES]
    assert {"standard", "mtlat"} <= set(table["case"])
    assert table["ratio"][0] == 1
    assert table["ratio"].tolist() == pytest.approx((table["robustlib"] / table["other"]).tolist())


def test_corruption_costs(tiny: Dataset) -> None:
    threads = torch.get_num_threads()
    table = run.corruption_costs(tiny, n=4, repeats=1)
    check(table)
    assert table["case"].tolist() == list(run.ONE_IMAGE)
    assert table["measure"].unique().tolist() == ["4 images of 16 px, ms"]
    assert table["ratio"].tolist() == pytest.approx((table["other"] / table["robustlib"]).tolist())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("name", ["gaussian_blur", "jpeg_compression", "brightness", "contrast"])
def test_what_is_compared_does_the_same_work(name: str) -> None:
    rows = torch.linspace(60, 200, 32).expand(3, 32, 32)
    image = (rows + rows.mT / 8).to(torch.uint8)
    pixels = image.float() / 255
    parameters = info(name).parameters(32)[run.SEVERITY - 1]
    jpeg = name == "jpeg_compression"
    theirs = run.ONE_IMAGE[name](image if jpeg else pixels, **parameters)
    ours = corrupt(pixels[None], name, run.SEVERITY)[0]
    difference = (ours - (theirs / 255 if jpeg else theirs)).abs().mean()
    assert difference < (ours - pixels).abs().mean() / 2


def test_the_table_and_its_provenance_are_written(
    tiny: Dataset, tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = pd.DataFrame([run.row("work, ms", "case", 1.0, "another", 2.0, 2.0, run.FASTER)])

    def part(dataset: Dataset) -> pd.DataFrame:
        return line

    monkeypatch.setenv("ROBUSTLIB_REPORTS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["run"])
    monkeypatch.setattr(run.data, "load", lambda *args, **options: tiny)
    for name in ("training_throughput", "recipe_costs", "corruption_costs"):
        monkeypatch.setattr(run, name, part)
    run.main()
    assert len(pd.read_csv(tmp_path / "bench.csv")) == 3
    facts = json.loads((tmp_path / "bench.json").read_text("utf-8"))
    assert {"processor", "packages", "threads"} <= set(facts)
    printed = capsys.readouterr().out
    assert "times faster" in printed
    assert facts["processor"] in printed


# The nineteen beside other packages

STUB = """
import json, sys
print(json.dumps({"python": "3", "packages": {}}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["corruption"] == "end":
        break
    answer = {"milliseconds": request["severity"] * 2.0, "images": 1}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[speed.Worker]:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    with speed.Worker(sys.executable, script, threads=1) as worker:
        yield worker


def test_medians_leave_out_the_warm_up() -> None:
    a, b = iter([100.0, 1, 5, 2]), iter([100.0, 3, 3, 4])
    assert speed.medians({"a": lambda: next(a), "b": lambda: next(b)}, 3) == {"a": 2, "b": 3}


def test_bandwidth_share_by_hand() -> None:
    image = 2 * 4 * 3 * 10 * 10  # bytes: read and written, float32, three channels
    assert speed.bandwidth_share(10, milliseconds=1, rate=1000 * image) == pytest.approx(1)
    assert speed.bandwidth_share(10, milliseconds=2, rate=2000 * image) == pytest.approx(0.25)


def test_copy_rate_is_positive() -> None:
    assert speed.copy_rate(torch.device("cpu"), values=1000, repeats=2) > 0


def test_rows_and_their_summary() -> None:
    rates = {"cpu": 1e9, "cuda": 1e12}
    fog = {"cpu": 2.0, "cuda": 0.5, "imagecorruptions": 6.0, "corrupt_tta": 4.0}
    snow = {"cpu": 1.0, "cuda": 0.25, "imagecorruptions": 8.0, "corrupt_tta": 9.0}
    table = pd.DataFrame(
        speed.rows(32, "fog", 1, {**fog, "torch_uncertainty": 1.0}, rates)
        + speed.rows(32, "snow", 1, snow, rates)
    )
    assert table["device"].tolist() == ["cpu", "cuda"] * 2
    assert table["threads"].tolist() == [1] * 4
    assert table["faster"].tolist() == ["corrupt_tta"] * 2 + ["imagecorruptions"] * 2
    assert table["times_faster"].tolist() == [2, 8, 8, 32]
    assert table["torch_uncertainty_ms"].tolist()[:2] == [1, 1]
    assert table["torch_uncertainty_ms"][2:].isna().all()
    summary = speed.summary(table)
    assert summary["geometric_mean"].tolist() == pytest.approx([4, 16])
    assert summary["smallest"].tolist() == [2, 8]
    assert summary["of"].tolist() == ["fog", "fog"]
    assert table["note"].tolist() == [""] * 4
    jpeg = {"cpu": 2.0, "cuda": 0.5, "imagecorruptions": 1.0}
    notes = [row["note"] for row in speed.rows(32, "jpeg_compression", 2, jpeg, rates)]
    assert notes == [speed.WHY_SLOWER["jpeg_compression"], ""]
    (alone,) = speed.rows(32, "fog", 1, {"cpu": 2.0}, {"cpu": 1e9})
    assert alone["robustlib_ms"] == 2
    assert math.isnan(alone["times_faster"])


def test_all_sides_get_the_same_pixels_in_turns(
    stub: speed.Worker, tiny: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = tiny.train.images[:2]
    asked: list[dict[str, object]] = []
    ask = stub.ask

    def check_and_ask(**request: object) -> dict[str, object]:
        assert np.array_equal(np.load(str(request["images"])), pixels.permute(0, 2, 3, 1).numpy())
        asked.append(request)
        return ask(**request)

    monkeypatch.setattr(stub, "ask", check_and_ask)
    monkeypatch.setattr(speed, "pictures", lambda side: pixels)
    monkeypatch.setattr(speed.corruptions, "names", lambda suite: ("brightness", "contrast"))
    found = dict(speed.measure(16, [torch.device("cpu")], {"stub": stub}, turns=1))
    assert list(found) == ["brightness", "contrast"]
    assert found["contrast"]["stub"] == 2 * (1 + 2 + 3 + 4 + 5) / 5
    assert found["contrast"]["cpu"] > 0
    assert [one["severity"] for one in asked] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5] * 2


def test_pictures_of_both_sides(tiny: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BATCHES", {16: 8, 40: 4})
    monkeypatch.setattr(speed.data, "load", lambda *args, **options: tiny)
    assert torch.equal(speed.pictures(16), tiny.train.images[:8])
    large = speed.pictures(40)
    assert large.shape == (4, 3, 40, 40)
    assert large.dtype == torch.uint8


def test_a_worker_that_ends_is_said(stub: speed.Worker) -> None:
    assert stub.greeting["python"] == "3"
    assert stub.ask(corruption="fog", severity=3)["milliseconds"] == 6
    with pytest.raises(speed.LeftOutError, match="ended"):
        stub.ask(corruption="end", severity=1)


@pytest.mark.parametrize("package", ["imagecorruptions", "corrupt_tta"])
def test_the_worker_itself_with_a_stand_in(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{package}.py").write_text(
        "def corrupt(image, severity, corruption_name):\n"
        "    assert image.shape == (8, 8, 3) and severity == 2 and corruption_name == 'fog'\n"
        "    print('stray output')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    np.save(tmp_path / "images.npy", np.zeros((5, 8, 8, 3), np.uint8))
    request = {"images": str(tmp_path / "images.npy"), "corruption": "fog", "severity": 2}
    with speed.Worker(sys.executable, speed.WORKER, package, threads=1) as worker:
        assert worker.greeting["packages"]["numpy"] == np.__version__
        assert worker.ask(**request, seconds=60)["images"] == 5
        answer = worker.ask(**request, seconds=0)
    assert answer["images"] == 1
    assert answer["milliseconds"] > 0


def test_what_takes_batches_gets_one_and_what_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "torch_uncertainty" / "transforms"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "corruption.py").write_text(
        "class Contrast:\n"
        "    batchable = True\n"
        "    shape = (5, 3, 8, 8)\n"
        "    def __init__(self, severity):\n"
        "        assert severity == 2\n"
        "    def __call__(self, images):\n"
        "        assert images.shape == self.shape and images.max() == 1\n"
        "class JPEGCompression(Contrast):\n"
        "    batchable = False\n"
        "    shape = (3, 8, 8)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    np.save(tmp_path / "images.npy", np.full((5, 8, 8, 3), 255, np.uint8))
    path = str(tmp_path / "images.npy")
    with speed.Worker(sys.executable, speed.WORKER, "torch_uncertainty", threads=1) as worker:

        def images(name: str) -> int:
            return worker.ask(images=path, corruption=name, severity=2, seconds=0)["images"]

        assert [images(name) for name in ("contrast", "jpeg_compression", "spatter")] == [5, 1, 0]
        assert math.isnan(speed.theirs(worker, Path(path), "spatter", 2))


def test_without_an_environment_the_comparison_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_environment(name: str) -> Path:
        raise speed.LeftOutError("no Python 3.11")

    def measure(side: int, *args: object, **options: object) -> Iterator[tuple[str, dict]]:
        yield from ((name, {"cpu": 0.5}) for name in names("imagenet_c"))

    monkeypatch.setenv("ROBUSTLIB_RESULTS", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["corruptions"])
    monkeypatch.setattr(speed, "environment", no_environment)
    monkeypatch.setattr(speed.torch, "set_num_threads", lambda threads: None)
    monkeypatch.setattr(speed, "measure", measure)
    monkeypatch.setattr(speed, "copy_rate", lambda device: 1e9)
    speed.main()
    table = pd.read_csv(tmp_path / "speed.csv")
    assert table.groupby(["threads", "size"]).size().tolist() == [19] * 4
    assert table[["imagecorruptions_ms", "corrupt_tta_ms"]].isna().all(axis=None)
    facts = json.loads((tmp_path / "speed.json").read_text("utf-8"))
    assert facts["compared_with"] == dict.fromkeys(speed.PEERS, "left out")
    assert {"processor", "packages"} <= set(facts)
    assert "left out: no Python 3.11" in capsys.readouterr().out


def test_why_an_environment_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "elsewhere"))
    with pytest.raises(speed.LeftOutError, match="no uv"):
        speed.environment("corrupt_tta")
    failing = "import sys; sys.exit('no such version\\nhint')"
    with pytest.raises(speed.LeftOutError, match=r"^no such version$"):
        speed.run_quietly([sys.executable, "-c", failing])


def test_an_environment_of_these_versions_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path))
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.touch(mode=0o755)
    commands = []

    def run_quietly(command: list[str]) -> None:
        commands.append(command[1])
        (tmp_path / "cache" / "imagecorruptions").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(speed, "run_quietly", run_quietly)
    assert speed.environment("imagecorruptions") == speed.environment("imagecorruptions")
    assert commands == ["venv", "pip"]
    monkeypatch.setitem(speed.PEERS, "imagecorruptions", speed.Peer(("imagecorruptions==2",)))
    speed.environment("imagecorruptions")
    assert commands == ["venv", "pip"] * 2
