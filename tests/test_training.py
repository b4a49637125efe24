from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustlib import corruptions, models
from robustlib import data as sources
from robustlib.core import cluster, devices
from robustlib.core.store import Store, StoreError
from robustlib.corruptions import registry
from robustlib.data import DataError, Dataset, StreamedSplit
from robustlib.evaluation import evaluate
from robustlib.perturbations import Corruption
from robustlib.recipes import (
    MTLAT,
    PGD,
    TLAT,
    Augmented,
    AugMix,
    Batch,
    Mixup,
    Recipe,
    Standard,
)
from robustlib.training import (
    AUGMENTATIONS,
    Budget,
    TrainingDivergedError,
    epochs_of,
    flip_and_shift,
    loop,
    overview,
    train,
)
from robustlib.training.loading import Loader
from tests.conftest import tiny_split

BUDGET = Budget(epochs=3, batch_size=16, learning_rate=0.05)


def run(recipes, data: Dataset, store: Store, seeds=(0,), budget: Budget = BUDGET, **options):
    return train(
        recipes,
        data,
        architecture="small_resnet",
        budget=budget,
        seeds=list(seeds),
        store=store,
        device="cpu",
        progress=False,
        **options,
    )


def weights(trained) -> torch.Tensor:
    """Weights and running statistics."""
    return torch.cat([v.detach().flatten().double() for v in trained.model.state_dict().values()])


def files(store: Store) -> set[str]:
    found = (path for path in store.root.rglob("*") if path.is_file())
    return {str(path.relative_to(store.root)) for path in found}


def test_training_learns_and_comes_from_the_store_next_time(tiny: Dataset, store: Store) -> None:
    (first,) = run([Standard()], tiny, store)
    (second,) = run([Standard()], tiny, store)
    assert (first.from_store, second.from_store) == (False, True)
    assert torch.equal(weights(first), weights(second))
    assert first.history == second.history
    assert [row["epoch"] for row in first.history] == [1, 2, 3]
    assert first.history[-1]["loss"] < first.history[0]["loss"]
    assert not first.model.training
    right = first.model(tiny.test.float_images()).argmax(1) == tiny.test.labels
    assert right.float().mean() > 0.6, "chance is a third"


def test_training_is_a_function_of_recipe_and_seed(tiny: Dataset, store: Store, tmp_path) -> None:
    recipes = [Standard(), Augmented(("gaussian_noise", "contrast"))]
    together = run(recipes, tiny, store, seeds=(0, 1))
    assert [(m.recipe, m.seed) for m in together] == [
        ("standard", 0),
        ("standard", 1),
        ("augmented", 0),
        ("augmented", 1),
    ]
    (alone,) = run(recipes[1:], tiny, Store(tmp_path / "other"), seeds=(1,))
    assert torch.equal(weights(alone), weights(together[3]))
    assert len({m.digest for m in together}) == 4
    assert not torch.equal(weights(together[0]), weights(together[1]))


def test_hyperparameters_and_budget_are_part_of_the_key(tiny: Dataset, store: Store) -> None:
    digests = {
        run([MTLAT(eps=0.01)], tiny, store)[0].digest,
        run([MTLAT(eps=0.02)], tiny, store)[0].digest,
        run([MTLAT(eps=0.02)], tiny, store, budget=Budget(epochs=1, batch_size=16))[0].digest,
    }
    assert len(digests) == 3


@dataclass(frozen=True)
class Exploding:
    name: str = "exploding"

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logits = model(batch.images)
        return logits.sum() * float("inf"), logits


def test_a_non_finite_loss_stops_and_keeps_earlier_models(tiny: Dataset, store: Store) -> None:
    with pytest.raises(TrainingDivergedError, match=r"exploding.*epoch 0, step 0"):
        run([Standard(), Exploding()], tiny, store)
    assert run([Standard()], tiny, store)[0].from_store


def test_bad_arguments(tiny: Dataset, store: Store) -> None:
    with pytest.raises(ValueError, match="unique"):
        run([Standard(), Standard()], tiny, store)
    with pytest.raises(ValueError, match="don't fill one batch"):
        run([Standard()], tiny, store, budget=Budget(epochs=1, batch_size=97))
    with pytest.raises(ValueError, match=r"'mtlat' is no recipe.*recipes.build"):
        run(["mtlat"], tiny, store)
    with pytest.raises(ValueError, match="at least one"):
        run([], tiny, store)
    with pytest.raises(ValueError, match="checkpoint_seconds"):
        run([Standard()], tiny, store, checkpoint_seconds=-1)
    with pytest.raises(ValueError, match="architecture"):
        train([Standard()], tiny, architecture="vgg", budget=BUDGET, seeds=[0], store=store)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 0, "at least 1"),
        ("epochs", 1.5, "integer"),
        ("batch_size", 1, "at least 2"),
        ("learning_rate", -0.1, "learning_rate must be a number above 0"),
        ("learning_rate", 0, "learning_rate must be a number above 0"),
        ("learning_rate", float("nan"), "learning_rate"),
        ("momentum", 1.1, "from 0 to 1"),
        ("weight_decay", -1e-4, "weight_decay"),
        ("warmup", "all", "warmup must be a number from 0 to 1"),
        ("schedule", "cosin", "cosine"),
        ("averaging", 1, "below 1"),
        ("augmentation", "flip", "unknown augmentation 'flip'"),
    ],
)
def test_bad_budgets(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget(**{"epochs": 1, name: value})  # type: ignore[arg-type]


def test_schedules_by_hand() -> None:
    step = Budget(epochs=1, learning_rate=0.1, schedule="step", warmup=0)
    rates = [step.rate(k, 8) for k in range(8)]
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    cosine = Budget(epochs=1, learning_rate=0.4, warmup=0.25)
    rates = [cosine.rate(k, 8) for k in (0, 1, 2, 5)]
    assert rates == pytest.approx([0.2, 0.4, 0.4, 0.2])
    assert cosine.rate(7, 8) == pytest.approx(0.2 * (1 + np.cos(5 * np.pi / 6)))


@dataclass
class Watched:
    """Another recipe, watched: the weights that each step starts from, and where to stop."""

    recipe: Recipe
    name: str = "watched"

    def __post_init__(self) -> None:  # private, so no part of the key
        self._seen: list[torch.Tensor] = []
        self._stop_at = -1

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        if len(self._seen) == self._stop_at:
            raise KeyboardInterrupt
        self._seen.append(parameters(model))
        return self.recipe.loss(model, batch)


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().clone().flatten() for p in model.parameters()])


def test_history_and_overview(tiny: Dataset, store: Store) -> None:
    trained = run([Standard()], tiny, store)
    history = trained[0].history
    budget_steps = 3 * 6
    assert [row["steps"] for row in history] == [6, 6, 6]
    assert history[-1]["accuracy"] > max(0.5, history[0]["accuracy"])
    assert all(0 <= row["accuracy"] <= 1 for row in history)
    assert history[-1]["learning_rate"] == pytest.approx(BUDGET.rate(17, budget_steps))
    for row in history:
        assert row["images_per_second"] == pytest.approx(96 / row["seconds"])
    table = overview(trained)
    assert table["steps"].tolist() == [budget_steps]
    assert table["final accuracy"].tolist() == [history[-1]["accuracy"]]


def test_the_last_weights_are_averaged_on_request(tiny: Dataset, tmp_path: Path) -> None:
    """With decay .5, beyond the first steps' (1 + k) / (10 + k): worked out from all weights."""
    watched = Watched(Standard())
    (plain,) = run([watched], tiny, Store(tmp_path / "a"))
    budget = Budget(epochs=3, batch_size=16, learning_rate=0.05, averaging=0.5)
    (averaged,) = run([Standard()], tiny, Store(tmp_path / "b"), budget=budget)
    last = parameters(plain.model)
    expected = watched._seen[0]
    for k, value in enumerate([*watched._seen[1:], last], start=1):
        decay = min(0.5, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * value
    result = parameters(averaged.model)
    torch.testing.assert_close(result, expected)
    assert not torch.equal(result, last)


def test_each_epoch_is_kept_on_request(tiny: Dataset, store: Store) -> None:
    (first,) = run([Standard()], tiny, store)
    with pytest.raises(ValueError, match="keep_epochs=True"):
        epochs_of(first, store)
    (again,) = run([Standard()], tiny, store, keep_epochs=True)
    assert not again.from_store, "the epochs were not there"
    assert torch.equal(weights(again), weights(first))
    epochs = epochs_of(again, store)
    assert [m.recipe for m in epochs] == [f"standard, epoch {k}" for k in (1, 2, 3)]
    assert [len(m.history) for m in epochs] == [1, 2, 3]
    assert torch.equal(weights(epochs[2]), weights(first))
    assert not torch.equal(weights(epochs[1]), weights(first))
    assert len({first.digest, *(m.digest for m in epochs)}) == 4
    assert run([Standard()], tiny, store, keep_epochs=True)[0].from_store


@pytest.mark.parametrize("stop_at", [0, 1, 6, 9, 17])
def test_interrupted_training_goes_on_where_it_stopped(
    tiny: Dataset, store: Store, tmp_path: Path, stop_at: int
) -> None:
    """And takes no step twice. 6 steps an epoch: before the first, within, at a boundary, last."""
    budget = Budget(epochs=3, batch_size=16, learning_rate=0.05, averaging=0.9)
    watched = Watched(MTLAT())
    watched._stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        run([watched], tiny, store, budget=budget, checkpoint_seconds=0)
    watched._stop_at = -1
    (resumed,) = run([watched], tiny, store, budget=budget)
    (whole,) = run([MTLAT()], tiny, Store(tmp_path / "other"), budget=budget)
    assert len(watched._seen) == 18
    assert torch.equal(weights(resumed), weights(whole))
    same = ("epoch", "loss", "accuracy", "learning_rate")
    assert [[row[k] for k in same] for row in resumed.history] == [
        [row[k] for k in same] for row in whole.history
    ]
    assert len(files(store)) == 1, "the checkpoint is gone"


LONG = Budget(epochs=4, batch_size=16, learning_rate=0.05, averaging=0.9)
CHILD = """
import sys
from robustlib.data import Dataset
from robustlib.recipes import MTLAT, Standard
from robustlib.core.store import Store
from robustlib.training import Budget, train
from tests.conftest import tiny_split

for trained in train(
    [Standard(), MTLAT()],
    Dataset.build("tiny", ("red", "green", "blue"), tiny_split(96, 1), tiny_split(60, 2)),
    architecture="small_resnet",
    budget=Budget(epochs=4, batch_size=16, learning_rate=0.05, averaging=0.9),
    seeds=[0],
    store=Store(sys.argv[1]),
    device="cpu",
    progress=False,
    checkpoint_seconds=0,
):
    print(trained.digest, sum(v.double().sum().item() for v in trained.model.state_dict().values()))
"""
ROOT = Path(__file__).resolve().parent.parent


def start(store: Store, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store.root)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_killed_at_any_moment_and_started_again(tiny: Dataset, store: Store, tmp_path) -> None:
    """SIGKILL at two random moments, often in the middle of writing a checkpoint."""
    rng = np.random.default_rng()
    for _ in range(2):
        before = files(store)
        with start(store) as child:
            while files(store) == before and child.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.4))
            child.kill()
    resumed = run([Standard(), MTLAT()], tiny, store, budget=LONG)
    whole = run([Standard(), MTLAT()], tiny, Store(tmp_path / "other"), budget=LONG)
    for one, other in zip(resumed, whole, strict=True):
        assert torch.equal(weights(one), weights(other))
        assert one.digest == other.digest
    left = {name for name in files(store) if "/." not in name}  # no unfinished file of the killed
    assert left == {f"models/{trained.digest}.safetensors" for trained in whole}


@pytest.mark.slow
def test_two_processes_train_the_same_models_in_one_store(tiny: Dataset, store: Store) -> None:
    children = [start(store, OMP_NUM_THREADS="1") for _ in range(2)]
    outputs = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    trained = run([Standard(), MTLAT()], tiny, store, budget=LONG)
    assert all(item.from_store for item in trained)
    for item, line in zip(trained, outputs[0][0].splitlines(), strict=True):
        digest, total = line.split()
        assert digest == item.digest
        assert float(total) == pytest.approx(weights(item).sum().item())
    assert files(store) == {f"models/{item.digest}.safetensors" for item in trained}


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100 kB: to a writer, what a full disk is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("checkpoint_seconds", [0, 60])
def test_a_full_disk_stops_with_a_message_and_harms_nothing(
    tiny: Dataset, store: Store, request: pytest.FixtureRequest, checkpoint_seconds: int
) -> None:
    (kept,) = run([Standard()], tiny, store)
    before = {name: (store.root / name).read_bytes() for name in files(store)}
    request.getfixturevalue("small_files")
    with pytest.raises(StoreError, match=r"can't write .*File too large.*Free space"):
        run([Mixup()], tiny, store, checkpoint_seconds=checkpoint_seconds)
    assert {name: (store.root / name).read_bytes() for name in files(store)} == before
    (again,) = run([Standard()], tiny, store)
    assert again.from_store
    assert torch.equal(weights(again), weights(kept))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of three classes, of two sizes, as PNG and JPEG."""
    for part, count in (("train", 36), ("test", 12)):
        split = tiny_split(count, 1)
        for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            path = tmp_path / "images" / part / f"class{label}" / f"{i}.{('png', 'jpg')[i % 2]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(image.permute(1, 2, 0).numpy())
            (picture.resize((24, 20)) if i % 3 else picture).save(path)
    return tmp_path / "images"


@pytest.fixture
def both(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Dataset]:
    """The folder in memory and streamed."""
    monkeypatch.setenv("ROBUSTLIB_DATA", str(tmp_path / "data"))
    return [
        sources.load("folder", root=folder, image_size=16, in_memory=in_memory)
        for in_memory in (True, False)
    ]


def test_a_streamed_split_has_the_same_images(both: list[Dataset], folder: Path) -> None:
    memory, streamed = (dataset.train for dataset in both)
    assert isinstance(streamed, StreamedSplit)
    assert len(streamed) == len(memory) == 36
    assert both[1].image_size == 16
    for index in (slice(None), slice(30, 50), torch.tensor([3, 0, 3]), slice(0, 0)):
        assert torch.equal(streamed.float_images(index), memory.float_images(index))
    for one, other in ((streamed, memory), (streamed.first(7), memory.first(7))):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.ids, other.ids)
    digests = {streamed.digest(), streamed.first(7).digest(), memory.digest()}
    assert len(digests) == 3
    changed = folder / "train" / streamed.files[0]
    os.utime(changed, ns=(1, 1))
    assert streamed.digest() not in digests


@pytest.mark.slow
def test_streamed_images_give_the_same_model(both: list[Dataset], tmp_path: Path) -> None:
    recipes = [MTLAT(corruptions=("gaussian_noise",))]
    memory, streamed, alone = (
        run(recipes, dataset, Store(tmp_path / name), decoders=decoders)[0]
        for dataset, name, decoders in (
            (both[0], "memory", None),
            (both[1], "streamed", 2),
            (both[1], "alone", 0),
        )
    )
    assert torch.equal(weights(memory), weights(streamed))
    assert torch.equal(weights(memory), weights(alone))
    cells = [Corruption("gaussian_noise", 3)]
    first, second = (
        evaluate([memory], dataset.test, cells, store=Store(tmp_path / name), progress=False)
        for dataset, name in ((both[0], "one"), (both[1], "other"))
    )
    assert np.array_equal(first.correct, second.correct)


def test_an_unreadable_file_is_named_when_it_is_met(both: list[Dataset], folder: Path) -> None:
    streamed = both[1].train
    assert isinstance(streamed, StreamedSplit)
    (folder / "train" / streamed.files[5]).write_bytes(b"no image")
    loader = Loader(streamed, torch.device("cpu"), decoders=0)
    with pytest.raises(DataError, match="replace it or remove it"):
        list(loader.batches([torch.arange(4), torch.arange(4, 8)]))
    with pytest.raises(ValueError, match="held in memory"):
        sources.load("shapes10", in_memory=False)


def test_size_decides_whether_a_folder_is_streamed(folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(sources.folder, "MEMORY_LIMIT", 3 * 16**2 * 47)
    dataset = sources.load("folder", root=folder, image_size=16)
    assert isinstance(dataset.train, StreamedSplit)


def test_compilation_is_part_of_the_key(tiny: Dataset, store: Store, monkeypatch) -> None:
    passed_through = []
    monkeypatch.setattr(loop, "compiled", lambda m: passed_through.append(m) or m)
    budget = Budget(epochs=1, batch_size=48, compile=True)
    (compiled,) = run([Standard()], tiny, store, budget=budget)
    assert len(passed_through) == 1
    (plain,) = run([Standard()], tiny, store, budget=replace(budget, compile=False))
    assert len(passed_through) == 1
    assert compiled.digest != plain.digest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_a_compiled_network_can_be_attacked_and_trained_by_one_graph() -> None:
    gradients = []
    for wrap in (lambda model: model, loop.compiled):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(48, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)]
        model = torch.nn.Sequential(torch.nn.Flatten(), *layers)
        labels = torch.arange(3)
        batch = Batch(torch.rand(3, 3, 4, 4), labels, labels, 3, seed=0)
        loss, _ = TLAT(eps=0.1).loss(wrap(model), batch)
        loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_flip_and_shift_moves_pixels_as_a_slice_would() -> None:
    """Every result must be a crop of the reflected image, mirrored or not."""
    images = torch.rand(40, 3, 16, 16)
    moved = flip_and_shift(images, seed=1)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="reflect")
    kinds = set()
    for before, after in zip(padded, moved, strict=True):
        matches = [
            (row, column, flip)
            for row in range(5)
            for column in range(5)
            for flip in (False, True)
            if torch.equal(
                after.flip(2) if flip else after, before[:, row : row + 16, column : column + 16]
            )
        ]
        assert matches
        kinds.update(matches)
    assert len(kinds) > 20
    assert torch.equal(moved, flip_and_shift(images, seed=1))
    assert not torch.equal(moved, flip_and_shift(images, seed=2))


def own_recipe(text: str) -> Any:
    """A recipe as a user would define it in a notebook, `text` a line of its loss."""
    names: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    source = (
        "class Own:\n    name = 'own'\n    strength = 1.0\n"
        f"    def loss(self, model, batch):\n        {text}\n"
        "        logits = model(batch.images)\n"
        "        return torch.nn.functional.cross_entropy(logits, batch.labels), logits\n"
    )
    exec(compile(source, "cell", "exec"), names)
    return names["Own"]()


def test_another_loss_of_a_users_recipe_is_another_model(tiny: Dataset, store: Store) -> None:
    (first,) = run([own_recipe("pass")], tiny, store)
    (documented,) = run([own_recipe("'''What it is.'''")], tiny, store)
    (other,) = run([own_recipe("batch.images.mul_(0.5)")], tiny, store)
    assert documented.from_store
    assert documented.digest == first.digest
    assert not other.from_store
    changed = own_recipe("pass")
    changed.strength = 2.0
    assert not run([changed], tiny, store)[0].from_store


def test_a_name_is_no_part_of_the_key(tiny: Dataset, store: Store) -> None:
    first, second = run([Mixup(), Mixup(name="again")], tiny, store)
    assert [first.recipe, second.recipe] == ["mixup", "again"]
    assert first.digest == second.digest
    assert second.from_store


def test_only_code_in_use_is_part_of_the_key(
    tiny: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [Standard(), Augmented(("fog",)), Augmented(("contrast",))]
    before = [item.digest for item in run(recipes, tiny, store)]

    def fog(images: torch.Tensor, **_: float) -> torch.Tensor:
        return images / 2

    edited = replace(corruptions.info("fog"), function=fog, random=False)
    monkeypatch.setitem(registry.REGISTRY, "fog", edited)
    monkeypatch.setitem(registry.REGISTRY, "new", edited)
    after = [item.digest for item in run(recipes, tiny, store)]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False, True]


def test_precision_and_augmentation_are_part_of_the_key(
    tiny: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = [Budget(epochs=1, batch_size=16, augmentation=name) for name in AUGMENTATIONS]
    digests = {run([Standard()], tiny, store, budget=budget)[0].digest for budget in budgets}
    assert len(digests) == len(AUGMENTATIONS) == 4
    (before,) = run([Standard()], tiny, store)
    monkeypatch.setattr(cluster, "trains_in_bfloat16", lambda device: "another answer")
    assert not run([Standard()], tiny, store)[0].from_store
    monkeypatch.undo()
    assert run([Standard()], tiny, store)[0].digest == before.digest


def test_weights_changed_after_training_never_meet_an_old_result(
    tiny: Dataset, store: Store
) -> None:
    (trained,) = run([Standard()], tiny, store)
    evaluate([trained], tiny.test, [], store=store, progress=False)
    with torch.no_grad():
        next(trained.model.parameters()).mul_(1.5)
    with pytest.raises(ValueError, match=r"standard-0 have changed.*models.wrap"):
        evaluate([trained], tiny.test, [], store=store, progress=False)
    own = models.wrap(trained.model, name="mine")
    assert evaluate([own], tiny.test, [], store=store, progress=False).computed == 1


def test_another_default_type_changes_nothing(tiny: Dataset, store: Store, tmp_path: Path) -> None:
    recipes = [Standard(), MTLAT(), Augmented(("fog",)), AugMix(), PGD(steps=2)]
    plain = run(recipes, tiny, store)
    torch.set_default_dtype(torch.float64)
    try:
        other = run(recipes, tiny, Store(tmp_path / "other"))
    finally:
        torch.set_default_dtype(torch.float32)
    for first, second in zip(plain, other, strict=True):
        assert torch.equal(weights(first), weights(second)), first.recipe


def test_training_works_whatever_mode_the_caller_is_in(tiny: Dataset, tmp_path: Path) -> None:
    plain = run([MTLAT()], tiny, Store(tmp_path / "plain"))
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            found = run([MTLAT()], tiny, Store(tmp_path / type(mode).__name__))
        assert torch.equal(weights(found[0]), weights(plain[0]))


@pytest.mark.parametrize("recipe", [Standard(), MTLAT(), AugMix()], ids=lambda recipe: recipe.name)
def test_bfloat16_trains_what_float32_trains(
    recipe: Recipe, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under autocast, too, each step computes with the weights that the last one left."""
    found = []
    for wanted in (False, True):
        monkeypatch.setattr(devices, "trains_in_bfloat16", lambda device, wanted=wanted: wanted)
        store = Store(tmp_path / str(wanted))
        found += run([recipe], tiny, store)
    exact, rounded = (model.history[0]["loss"] for model in found)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.05)


def test_numbers_of_other_types(tiny: Dataset, store: Store) -> None:
    budget = Budget(epochs=np.int64(1), batch_size=16.0, learning_rate="1/5")
    assert budget == Budget(epochs=1, batch_size=16, learning_rate=0.2)
    (model,) = run([Standard()], tiny, store, budget=budget, seeds=np.array([1]))
    assert run([Standard()], tiny, store, budget=budget, seeds=[1])[0].digest == model.digest
    with pytest.raises(ValueError, match="seeds is empty"):
        run([Standard()], tiny, store, seeds=[])
    with pytest.raises(ValueError, match="repeats"):
        run([Standard()], tiny, store, seeds=[1, 1])


def test_shift_never_mirrors() -> None:
    ramp = torch.arange(16.0).expand(30, 3, 16, 16)
    inner = AUGMENTATIONS["shift"](ramp, seed=0)[..., 4:-4]
    assert (inner.diff(dim=-1) > 0).all()
    assert len({tuple(image[0, 8].tolist()) for image in inner}) > 3
    mirrored = AUGMENTATIONS["flip_and_shift"](ramp, seed=0)[..., 4:-4].diff(dim=-1)
    assert (mirrored > 0).any()
    assert (mirrored < 0).any()


def test_no_augmentation_is_none() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(AUGMENTATIONS["none"](images, seed=0), images)


def test_resized_crops_are_enlarged_parts_of_the_image() -> None:
    """On a plane, a crop keeps even steps: the step is the crop's share of the side."""
    side, count = 32, 400
    x = torch.arange(side, dtype=torch.float32).expand(side, side)
    images = torch.stack([x, x.T, torch.full_like(x, 7)]).expand(count, 3, side, side)
    crops = AUGMENTATIONS["resized_crop"](images, seed=3)
    assert crops.shape == images.shape
    torch.testing.assert_close(crops[:, 2], images[:, 2])
    middle = slice(12, 20)
    across = crops[:, 0, 16, middle].diff(dim=-1).mean(-1)
    down = crops[:, 1, middle, 16].diff(dim=-1).mean(-1)
    assert 0.4 < (across < 0).float().mean() < 0.6, "half are mirrored"
    assert (down > 0).all()
    width, height = across.abs(), down
    area, ratio = width * height, width / height
    assert 0.07 < area.min() < 0.15
    assert 0.8 < area.max() <= 1.001
    assert ((ratio > 0.74) & (ratio < 1.34)).all()
    assert abs(area.mean() - 0.54) < 0.05
    assert crops.min() >= -0.001
    assert crops.max() <= side - 1 + 0.001
    assert torch.equal(crops, AUGMENTATIONS["resized_crop"](images, seed=3))
