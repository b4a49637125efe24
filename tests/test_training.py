from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from robustlib.data import Dataset
from robustlib.recipes import MTLAT, Augmented, Batch, Standard
from robustlib.store import Store
from robustlib.training import Budget, TrainingDivergedError, flip_and_shift, train

BUDGET = Budget(epochs=3, batch_size=16, learning_rate=0.05)


def run(recipes, data: Dataset, store: Store, seeds=(0,), budget: Budget = BUDGET):
    return train(
        recipes,
        data,
        architecture="small_resnet",
        budget=budget,
        seeds=list(seeds),
        store=store,
        device="cpu",
        progress=False,
    )


def weights(trained) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trained.model.parameters()])


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

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return model(batch.images).sum() * float("inf")


def test_a_non_finite_loss_stops_and_keeps_earlier_models(tiny: Dataset, store: Store) -> None:
    with pytest.raises(TrainingDivergedError, match=r"exploding.*epoch 0, step 0"):
        run([Standard(), Exploding()], tiny, store)
    assert run([Standard()], tiny, store)[0].from_store


def test_bad_arguments(tiny: Dataset, store: Store) -> None:
    with pytest.raises(ValueError, match="unique"):
        run([Standard(), Standard()], tiny, store)
    with pytest.raises(ValueError, match="don't fill one batch"):
        run([Standard()], tiny, store, budget=Budget(epochs=1, batch_size=97))
    with pytest.raises(ValueError, match="at least"):
        Budget(epochs=0)
    with pytest.raises(ValueError, match="architecture"):
        train([Standard()], tiny, architecture="vgg", budget=BUDGET, seeds=[0], store=store)


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
