from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustlib import models
from robustlib.core import jobs
from robustlib.core.jobs import WorkerError, Workers
from robustlib.core.store import Store
from robustlib.data import Dataset
from robustlib.data.shared import share
from robustlib.evaluation import Evaluation, evaluate
from robustlib.perturbations import Attack, Clean, Perturbation, corruption_grid
from robustlib.recipes import MTLAT, Augmented, Batch, Mixup, Recipe, Standard
from robustlib.training import Budget, TrainedModel, TrainingDivergedError, epochs_of, train
from tests.test_training import Exploding

ROOT = Path(__file__).resolve().parent.parent
RECIPES: list[Recipe] = [Standard(), MTLAT(), Augmented(("fog", "gaussian_noise"))]
CELLS: list[Perturbation] = [*corruption_grid(["fog", "gaussian_noise"], [1, 5])]
CELLS += [Attack("pgd", 0.02, steps=3), Attack("ddn", 0.3, steps=5)]


def run(
    data: Dataset, store: Store, workers: Workers | None, recipes: Any = RECIPES, **options: Any
) -> list[TrainedModel]:
    return train(
        recipes,
        data,
        **{
            "architecture": "small_resnet",
            "budget": Budget(epochs=2, batch_size=16, learning_rate=0.05, averaging=0.5),
            "seeds": [0],
            "store": store,
            "device": "cpu",
            "progress": False,
            "workers": workers,
            **options,
        },
    )


def study(data: Dataset, store: Store, workers: Workers | None) -> tuple[list[str], Evaluation]:
    """What everything computed amounts to: the weights' hashes, and the evaluation."""
    trained = run(data, store, workers)
    found = evaluate(trained, data.test, CELLS, store=store, progress=False, workers=workers)
    return [model.weights for model in trained], found


@pytest.fixture(scope="module")
def alone(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Evaluation]:
    """The study in this process."""
    return study(tiny, Store(tmp_path_factory.mktemp("alone")), None)


@pytest.fixture(scope="module")
def two() -> Iterator[Workers]:
    with Workers(2) as workers:
        yield workers


def children(process: int | str = "self") -> list[int]:
    """Processes that descend from `process`."""
    import psutil

    of = psutil.Process() if process == "self" else psutil.Process(int(process))
    return [child.pid for child in of.children(recursive=True)]


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(") ", 1)[1][0]
    except FileNotFoundError:
        return False
    return state != "Z"


# Whoever does the work


def test_results_do_not_depend_on_the_workers(tiny, alone, two, store: Store) -> None:
    weights, found = study(tiny, store, two)
    assert weights == alone[0]
    assert found.table.equals(alone[1].table)
    np.testing.assert_array_equal(found.correct, alone[1].correct)
    for row, details in alone[1].attacked.items():
        assert found.attacked[row].equals(details)
    assert not list((store.root / "claims").iterdir())
    assert not list((store.root / "progress").iterdir())


def test_what_is_stored_starts_no_process(tiny, alone, store: Store) -> None:
    study(tiny, store, None)
    with Workers(2) as workers:
        weights, found = study(tiny, store, workers)
        assert workers._pool is None
    assert weights == alone[0]
    assert found.computed == 0


def test_images_reach_workers_through_a_file(tiny, two, store: Store) -> None:
    """Mapped, not copied: the pages of the tensors belong to the file."""
    place = share(tiny.train, store)
    before = place.path.stat().st_mtime_ns
    assert share(tiny.train, store) == place
    assert place.path.stat().st_mtime_ns == before, "written once"
    split = place.open()
    assert torch.equal(split.images, tiny.train.images)
    assert torch.equal(split.labels, tiny.train.labels)
    assert torch.equal(split.ids, tiny.train.ids)
    maps = Path("/proc/self/maps").read_text()
    assert place.path.name in maps


def test_models_of_ones_own_are_evaluated_here(tiny, two, store: Store) -> None:
    seen = []

    class Own(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(os.getpid())
            return images.mean((2, 3))

    own = models.wrap(Own().eval(), name="mine")
    trained = run(tiny, store, two, [Standard(), Mixup()])
    found = evaluate(
        [own, *trained], tiny.test, CELLS[:2], store=store, progress=False, workers=two
    )
    assert set(seen) == {os.getpid()}
    assert found.table.groupby("model")["accuracy"].mean()["mine-0"] > 0.9
    assert found.computed == 3 * 3


def test_a_perturbation_and_a_recipe_of_a_notebook_reach_the_workers(tiny, two, store) -> None:
    """Classes that workers can't import."""
    names: dict[str, Any] = {"__name__": "__main__", "torch": torch, "dataclass": dataclass}
    exec(
        "@dataclass(frozen=True)\nclass Own:\n    name: str = 'own'\n"
        "    def loss(self, model, batch):\n        logits = model(1 - batch.images)\n"
        "        return torch.nn.functional.cross_entropy(logits, batch.labels), logits\n"
        "@dataclass(frozen=True)\nclass Negative:\n    label = 'negative'\n    family = 'own'\n"
        "    severity = 0\n    needs_model = False\n"
        "    def apply(self, images, labels, ids, model, seed):\n        return 1 - images\n",
        names,
    )
    trained = run(tiny, store, two, [names["Own"](), Standard()])
    cells = [names["Negative"]()]
    found = evaluate(trained, tiny.test, cells, store=store, progress=False, workers=two)
    accuracy = found.table.set_index(["recipe", "perturbation"])["accuracy"]
    assert accuracy["own", "negative"] > accuracy["own", "clean"]
    assert accuracy["standard", "clean"] > accuracy["standard", "negative"]


def test_streamed_images_and_epochs(tiny, two, store: Store, tmp_path: Path) -> None:
    from PIL import Image

    from robustlib import data

    for part, split in (("train", tiny.train), ("test", tiny.test)):
        for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = tmp_path / "images" / part / f"class{label}" / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    streamed = data.load("folder", root=tmp_path / "images", image_size=16, in_memory=False)
    results = []
    for workers, place in ((None, "here"), (two, "there")):
        other = Store(tmp_path / place)
        trained = run(streamed, other, workers, [Standard(), Mixup()], keep_epochs=True)
        epochs = [epoch for model in trained for epoch in epochs_of(model, other)]
        found = evaluate(
            [*trained, *epochs], streamed.test, CELLS, store=other, progress=False, workers=workers
        )
        results.append(([m.weights for m in (*trained, *epochs)], found.correct.tolist()))
    assert results[0] == results[1]


# Trouble


def test_others_are_trained_before_a_divergence_is_reported(tiny, two, store: Store) -> None:
    with pytest.raises(TrainingDivergedError, match="exploding"):
        run(tiny, store, two, [Exploding(), Standard(), Mixup()])
    assert all(model.from_store for model in run(tiny, store, None, [Standard(), Mixup()]))


def fails(job: int, tell: jobs.Tell) -> int:
    if job == 1:
        raise KeyError("a fault of a job")
    return job


def test_an_error_of_a_job_arrives_as_it_is(store: Store) -> None:
    with Workers(2) as workers, pytest.raises(KeyError, match="a fault of a job"):
        workers.run(fails, [0, 1, 2], store=store, threads=1)
    with Workers(2) as workers:
        assert workers.run(fails, [0, 2, 3], store=store, threads=1) == [0, 2, 3]


class StubbornError(Exception):
    """Can't be pickled and read back."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


def stubborn(job: int, tell: jobs.Tell) -> None:
    raise StubbornError("told ", "anyway")


def test_an_error_that_cannot_travel_is_told_in_words(store: Store) -> None:
    with (
        Workers(2) as workers,
        pytest.raises(RuntimeError, match="StubbornError in a worker: told any"),
    ):
        workers.run(stubborn, [0, 1], store=store, threads=1)


def test_paths_mean_the_same_to_workers(tiny, two, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Workers(2) as workers:
        run(tiny, Store("here"), workers, [Standard(), Mixup()])
    assert len(list(tmp_path.glob("here/models/*"))) == 2


def warns(job: int, tell: jobs.Tell) -> None:
    warnings.warn(f"of job {job}", DeprecationWarning, stacklevel=1)


def test_warnings_of_workers_are_heard(two: Workers, store: Store) -> None:
    with pytest.warns(DeprecationWarning, match="of job") as heard:
        two.run(warns, [0, 1], store=store, threads=1)
    assert sorted(str(item.message) for item in heard) == ["of job 0", "of job 1"]


def counts(job: int, tell: jobs.Tell) -> int:
    for done in range(1, job + 1):
        tell(done)
    return torch.get_num_threads()


def test_progress_and_threads(two: Workers, store: Store) -> None:
    before = torch.get_num_threads()
    for workers in (two, Workers(1)):
        seen: list[tuple[int, int]] = []

        def watch(done: int, finished: int, seen: list[tuple[int, int]] = seen) -> None:
            seen.append((done, finished))

        threads = workers.run(counts, [5, 7], store=store, threads=1, watch=watch)
        assert seen[-1] == (12, 2)
        assert seen == sorted(seen)
        assert threads == [1, 1]
    assert torch.get_num_threads() == before


def dies_once(job: Path, tell: jobs.Tell) -> str:
    try:
        job.touch(exist_ok=False)
    except FileExistsError:
        return "done by another"
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def dies(job: int, tell: jobs.Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_dead_workers_job_is_done_by_another(store: Store, tmp_path: Path) -> None:
    with Workers(2) as workers:
        marks = [tmp_path / "first", tmp_path / "second"]
        assert workers.run(dies_once, marks, store=store, threads=1) == ["done by another"] * 2
        with pytest.raises(WorkerError, match=r"one after the other.*memory.*stored"):
            workers.run(dies, [0, 1], store=store, threads=1)
        assert workers.run(fails, [0, 2], store=store, threads=1) == [0, 2], "usable afterwards"


def hungry(job: int, tell: jobs.Tell) -> None:
    torch.empty(2**50)


def test_a_worker_without_memory_says_so(store: Store) -> None:
    with (
        Workers(2) as workers,
        pytest.raises(WorkerError, match=r"too little memory.*fewer workers"),
    ):
        workers.run(hungry, [0, 1], store=store, threads=1)


@dataclass(frozen=True)
class DiesOnce:
    """`Standard`, but for its worker, which dies at the tenth step of the first try."""

    mark: str
    name: str = "dies_once"

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        steps = Path(self.mark)
        taken = int(steps.read_text()) if steps.exists() else 0
        steps.write_text(str(taken + 1))
        if taken == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return Standard().loss(model, batch)


def test_killed_training_goes_on_from_its_checkpoint(tiny, two, store, tmp_path) -> None:
    mark = tmp_path / "steps"
    recipes = [DiesOnce(str(mark)), MTLAT()]
    killed, other = run(tiny, store, two, recipes, checkpoint_seconds=0)
    plain, mtlat = run(tiny, Store(tmp_path / "other"), None, [Standard(), MTLAT()])
    assert killed.weights == plain.weights
    assert other.weights == mtlat.weights
    assert int(mark.read_text()) == 12 + 1, "12 steps, one of them twice"


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run where it is ignored
from robustlib.core.jobs import Workers
from robustlib.core.store import Store
from tests.test_jobs import sleeps
workers = Workers(2)
print("begun", flush=True)
workers.run(sleeps, [60, 60], store=Store(sys.argv[1]), threads=1)
"""


def sleeps(job: float, tell: jobs.Tell) -> None:
    time.sleep(job)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(store: Store, number: int) -> None:
    command = [sys.executable, "-c", CHILD, str(store.root)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == b"begun\n"
        deadline = time.monotonic() + 60
        while len(started := children(child.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.1)  # a fork server, a resource tracker, two workers
        assert len(started) == 4
        time.sleep(0.5)
        child.send_signal(number)
        child.wait(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(alive, started)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, started))


def test_bad_workers(store: Store) -> None:
    for count in (-1, 1.5, 2000, "many"):
        with pytest.raises(ValueError, match="workers must be"):
            Workers(count)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="leave their number at 0"):
        Workers(2, "tcp://127.0.0.1:8786")
    with pytest.warns(UserWarning, match=r"workers share \d+ cores, which is slower"):
        Workers(jobs.cores() + 1)


# How many


def test_small_networks_take_one_thread_and_large_ones_all(monkeypatch) -> None:
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    small = models.build("small_resnet", classes=10, image_size=32, seed=0).train()
    large = models.build("resnet18", classes=10, image_size=32, seed=0)
    assert jobs.threads_for(small, 32) == 1
    assert small.training
    assert jobs.threads_for(large, 32) == 8
    workers = Workers()
    assert workers.elsewhere(2, 1)
    assert not workers.elsewhere(1, 1), "a single job is done here"
    assert not workers.elsewhere(20, 8), "one at a time"
    assert not workers.elsewhere(20, None), "on a GPU"
    assert not Workers(1).elsewhere(20, 1)


def test_multiply_adds_by_hand() -> None:
    layers = [torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.AdaptiveAvgPool2d(1)]
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(4, 5)).train()
    assert jobs.multiply_adds(network, 8) == 8 * 8 * 4 * (3 * 3 * 3) + 4 * 5
    assert network.training
    grouped = torch.nn.Conv2d(4, 4, 3, groups=4, stride=2)
    assert jobs.multiply_adds(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), grouped), 9) == (
        9 * 9 * 4 * 3 + 4 * 4 * 4 * 9
    )


# Warm starts


def test_a_warm_start_begins_with_the_weights_of_another(tiny, two, store: Store) -> None:
    budget = Budget(epochs=1, batch_size=16, learning_rate=1e-9, weight_decay=0, momentum=0)
    (standard,) = run(tiny, store, None, [Standard()])
    warm = run(tiny, store, two, [MTLAT(), Mixup()], start=standard, budget=budget)
    fresh = run(tiny, store, None, [MTLAT()], budget=budget)
    for name, value in standard.model.named_parameters():
        torch.testing.assert_close(dict(warm[0].model.named_parameters())[name], value)
    assert warm[0].digest != fresh[0].digest
    again = run(tiny, store, None, [MTLAT(), Mixup()], start=[standard], budget=budget)
    assert [m.digest for m in again] == [m.digest for m in warm]
    assert all(model.from_store for model in again)


def test_another_start_is_another_model(tiny, store: Store) -> None:
    budget = Budget(epochs=1, batch_size=16)
    starts = run(tiny, store, None, [Standard()], seeds=[0, 1], budget=budget)
    both = run(tiny, store, None, [Mixup()], seeds=[0, 1], start=starts, budget=budget)
    crossed = run(tiny, store, None, [Mixup()], seeds=[0, 1], start=starts[0], budget=budget)
    assert both[0].digest == crossed[0].digest
    assert both[1].digest != crossed[1].digest
    assert both[1].weights != crossed[1].weights


def test_bad_starts(tiny, store: Store, tmp_path: Path) -> None:
    budget = Budget(epochs=1, batch_size=16)
    starts = run(tiny, store, None, [Standard()], budget=budget)
    with pytest.raises(ValueError, match="no model of seed 1, only of 0"):
        run(tiny, store, None, [Mixup()], seeds=[0, 1], start=starts)
    with pytest.raises(ValueError, match="has architecture small_resnet, where resnet18"):
        run(tiny, store, None, [Mixup()], start=starts, architecture="resnet18")
    with pytest.raises(ValueError, match="standard-0 is not in the store"):
        run(tiny, Store(tmp_path / "other"), None, [Mixup()], start=starts)


def test_a_clean_evaluation_needs_no_perturbation(tiny, two, store: Store) -> None:
    trained = run(tiny, store, None, [Standard()])
    found = evaluate(trained, tiny.test, [Clean()], store=store, progress=False, workers=two)
    assert found.table["perturbation"].tolist() == ["clean"]


def test_a_perturbation_may_write_to_its_images(tiny, store: Store, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Black:
        label: str = "black"
        family: str = "own"
        severity: int = 0
        needs_model: bool = False

        def apply(self, images, labels, ids, model, seed):
            return images.zero_()

    trained = run(tiny, store, None, [Standard(), Mixup()])
    found = evaluate(trained, tiny.test, [Black(), *CELLS], store=store, progress=False)
    plain = evaluate(
        trained, tiny.test, CELLS, store=Store(tmp_path / "other"), progress=False
    ).table
    kept = found.table[found.table["perturbation"] != "black"].reset_index(drop=True)
    assert kept.equals(plain)
