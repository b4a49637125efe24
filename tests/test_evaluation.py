from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from robustlib import attacks, evaluation
from robustlib.attacks import run
from robustlib.core.store import Store
from robustlib.corruptions import corrupt
from robustlib.data import Dataset, Split
from robustlib.evaluation import COLUMNS, Evaluation, accuracy_against_radius, evaluate
from robustlib.perturbations import Attack, Clean, Corruption, corruption_grid
from robustlib.recipes import Mixup, Standard
from robustlib.training import Budget, TrainedModel, train

CELLS = [Corruption("gaussian_noise", 3), Corruption("contrast", 5), Attack("fgsm", 0.02)]


@pytest.fixture(scope="module")
def trained(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[TrainedModel]:
    return train(
        [Standard(), Mixup()],
        tiny,
        architecture="small_resnet",
        budget=Budget(epochs=2, batch_size=16),
        seeds=[0],
        store=Store(tmp_path_factory.mktemp("models")),
        device="cpu",
        progress=False,
    )


def test_the_table_is_tidy_and_agrees_with_direct_computation(tiny, trained, store) -> None:
    result = evaluate(trained, tiny.test, CELLS, store=store, progress=False, batch_size=7)
    assert tuple(result.table.columns) == COLUMNS
    assert len(result.table) == 2 * 4
    assert result.correct.shape == (8, 60)
    np.testing.assert_allclose(result.table["accuracy"], result.correct.mean(1))
    noisy = corrupt(tiny.test.float_images(), "gaussian_noise", 3, 0, tiny.test.ids)
    expected = trained[1].model(noisy).argmax(1).eq(tiny.test.labels)
    row = result.table.query("recipe == 'mixup' and perturbation == 'gaussian_noise'").index[0]
    assert (result.correct[row] == expected.numpy()).mean() > 0.98
    assert result.table.loc[row, ["family", "severity", "n"]].tolist() == ["noise", 3, 60]


def test_attacked_images_are_right_only_if_clean_ones_are(tiny, trained, store) -> None:
    result = evaluate(trained, tiny.test, CELLS, store=store, progress=False)
    clean, attacked = (
        result.per_image(["standard", "mixup"], [name])[:, 0] for name in ("clean", "fgsm")
    )
    assert (attacked <= clean).all()
    assert result.table.query("family == 'adversarial'")["eps"].eq(0.02).all()


def test_a_second_evaluation_computes_nothing(tiny, trained, store, monkeypatch) -> None:
    first = evaluate(trained, tiny.test, CELLS, store=store, progress=False)
    assert first.computed == 8

    def refuse(*_: object) -> None:
        raise AssertionError("predicted again although it was stored")

    monkeypatch.setattr(evaluation, "predict", refuse)
    second = evaluate(trained, tiny.test, CELLS, store=store, progress=False)
    assert second.computed == 0
    assert second.table.equals(first.table)
    np.testing.assert_array_equal(second.correct, first.correct)


def test_corrupted_images_are_made_once_for_all_models(tiny, trained, store, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(
        Corruption, "apply", lambda self, images, *_: calls.append(self.name) or images
    )
    evaluate(trained, tiny.test, CELLS[:2], store=store, progress=False)
    assert calls == ["gaussian_noise", "contrast"]


def test_results_keep_their_image_when_the_test_set_shrinks(tiny, trained, store) -> None:
    part = slice(10, 40)
    smaller = Split(tiny.test.images[part], tiny.test.labels[part], tiny.test.ids[part])
    whole = evaluate(trained, tiny.test, CELLS[:1], store=store, progress=False)
    some = evaluate(trained, smaller, CELLS[:1], store=store, progress=False)
    assert some.computed == 4
    assert (whole.correct[:, part] == some.correct).mean() > 0.98


def test_per_image_averages_severities_and_refuses_what_is_missing(tiny, trained, store) -> None:
    grid = corruption_grid(["contrast"], [1, 5])
    result = evaluate(trained, tiny.test, grid, store=store, progress=False)
    values = result.per_image(["standard"], ["clean", "contrast"])
    rows = result.table.query("recipe == 'standard' and perturbation == 'contrast'").index
    np.testing.assert_allclose(values[0, 1], result.correct[rows].mean(0))
    with pytest.raises(ValueError, match="fog"):
        result.per_image(["standard"], ["fog"])


def by_seed(*rows: tuple[str, int, str, int], images: int = 4) -> Evaluation:
    """An evaluation whose row i is right on the images that i's binary digits name."""
    named = ["recipe", "training_seed", "perturbation", "severity"]
    table = pd.DataFrame(rows, columns=named).assign(n=images)
    correct = (np.arange(len(rows))[:, None] >> np.arange(images)) & 1
    return Evaluation(table, correct.astype(bool), len(rows))


def test_per_seed_keeps_seeds_apart_and_in_order() -> None:
    result = by_seed(
        ("a", 7, "clean", 0),
        ("a", 3, "clean", 0),
        ("b", 3, "clean", 0),
        ("b", 7, "clean", 0),
        ("a", 3, "fog", 1),
        ("a", 3, "fog", 2),
        ("a", 7, "fog", 1),
        ("a", 7, "fog", 2),
    )
    clean = result.per_seed(["b", "a"], ["clean"])
    assert clean.dtype == bool
    assert clean.shape == (2, 2, 1, 4)
    np.testing.assert_array_equal(clean[0, :, 0], result.correct[[2, 1]])
    np.testing.assert_array_equal(clean[1, :, 0], result.correct[[3, 0]])
    both = result.per_seed(["a"], ["fog", "clean"])
    assert both[0, 0, 0].tolist() == [0.5, 0, 1, 0]  # rows 4 and 5: 0010 and 1010
    assert both[1, 0, 0].tolist() == [0.5, 1, 1, 0]
    np.testing.assert_allclose(both.mean(0), result.per_image(["a"], ["fog", "clean"]))


def test_per_seed_refuses_recipes_with_other_seeds_and_what_is_missing() -> None:
    result = by_seed(("a", 0, "clean", 0), ("a", 1, "clean", 0), ("b", 0, "clean", 0))
    with pytest.raises(ValueError, match=r"seeds of 'b' are \[0\], those of 'a' \[0, 1\]"):
        result.per_seed(["a", "b"], ["clean"])
    with pytest.raises(ValueError, match="fog"):
        result.per_seed(["a"], ["fog"])
    assert result.per_seed(["b"], ["clean"]).shape == (1, 1, 1, 4)


def test_attacks_keep_what_they_did_to_each_image(tiny, trained, store) -> None:
    cells = [Attack("fgsm", 0.02), Attack("fgsm", 0.04), Attack("ddn", 0.3, steps=15)]
    result = evaluate(trained, tiny.test, cells, store=store, progress=False, batch_size=25)
    details = result.details("mixup-0", "fgsm")
    assert list(details.columns) == [
        *("eps", "image", "clean_correct", "robust_correct", "norm", "steps"),
    ]
    assert details["eps"].tolist() == [0.02] * 60 + [0.04] * 60
    assert details["image"].tolist() == [*range(60), *range(60)]
    split = tiny.test
    direct = run(
        trained[1].model,
        split.float_images(),
        split.labels,
        "ddn",
        eps=0.3,
        ids=split.ids,
        steps=15,
    )
    found = result.details("mixup-0", "ddn")
    assert found["clean_correct"].mean() == direct.clean_correct.float().mean()
    assert (found["robust_correct"] != direct.robust_correct.numpy()).sum() <= 1
    assert (np.abs(found["norm"] - direct.norm.numpy()) < 0.01).mean() > 0.9
    rows = result.table.set_index(["recipe", "perturbation"])
    assert rows.loc[("mixup", "ddn"), "accuracy"] == found["robust_correct"].mean()
    assert rows.loc[("mixup", "ddn"), "norm"] == "L2"
    assert rows.loc[("mixup", "clean"), "norm"] == ""
    again = evaluate(trained, tiny.test, cells, store=store, progress=False)
    assert again.computed == 0
    pd.testing.assert_frame_equal(again.details("mixup-0", "ddn"), found)
    for model, name in [("mixup-0", "clean"), ("mixup-0", "pgd"), ("mixup-1", "ddn")]:
        with pytest.raises(ValueError, match="attacks: ddn, fgsm"):
            result.details(model, name)


def test_details_of_attacks_that_differ_need_labels(tiny, trained, store) -> None:
    cells = [Attack("pgd", 0.02, steps=1), Attack("pgd", 0.02, steps=2)]
    result = evaluate(trained[:1], tiny.test, cells, store=store, progress=False)
    with pytest.raises(ValueError, match=r"different options, steps=1; steps=2.*label="):
        result.details("standard-0", "pgd")


def test_other_settings_of_an_attack_are_evaluated_anew(tiny, trained, store) -> None:
    model, options = trained[:1], {"store": store, "progress": False}
    evaluate(model, tiny.test, [Attack("pgd", 0.02, steps=1)], **options)
    for other in (
        Attack("pgd", 0.02, steps=2),
        Attack("pgd", 0.02, steps=1, restarts=1),
        Attack("pgd", 0.03, steps=1),
    ):
        assert evaluate(model, tiny.test, [other], **options).computed == 1


@pytest.mark.parametrize(
    ("name", "radii"), [("fgsm", [0.02, 0.1, 0.4]), ("deepfool", [0.5, 2.0, 8.0])]
)
def test_accuracy_against_radius(name, radii, tiny, trained, store) -> None:
    options = {"store": store, "progress": False}
    curve = accuracy_against_radius(trained, tiny.test, [name], radii, **options)
    assert curve["recipe"].tolist() == ["standard"] * 4 + ["mixup"] * 4
    assert curve["eps"].tolist() == [0.0, *radii] * 2
    assert curve["n"].eq(60).all()
    assert curve["norm"].eq(attacks.info(name).norm).all()
    found = curve["accuracy"].to_numpy()[4:]
    for position, eps in enumerate(radii, start=1):
        direct = evaluate(trained[1:], tiny.test, [Attack(name, eps)], **options)
        assert found[position] == pytest.approx(direct.table["accuracy"].iloc[1], abs=0.02)
        assert found[0] == direct.table["accuracy"].iloc[0]
    assert found[-1] < found[0]
    if attacks.info(name).minimal:
        assert (np.diff(found) <= 0).all()


def test_bad_curves(tiny, trained, store) -> None:
    with pytest.raises(ValueError, match="a radius must be a number above 0"):
        accuracy_against_radius(trained, tiny.test, ["fgsm"], [0.0], store=store)
    with pytest.raises(ValueError, match="'ddn'"):
        accuracy_against_radius(trained, tiny.test, ["dnn"], [0.1], store=store)
    with pytest.raises(ValueError, match="radii is empty"):
        accuracy_against_radius(trained, tiny.test, ["fgsm"], [], store=store)


def test_bad_arguments(tiny, trained, store) -> None:
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate([], tiny.test, [], store=store)
    with pytest.raises(ValueError, match="'fog'"):
        Corruption("fogg", 3)
    with pytest.raises(ValueError, match="1 to 5"):
        Corruption("fog", 0)
    with pytest.raises(ValueError, match="needs the model"):
        Attack("fgsm", 0.1).apply(torch.rand(1, 3, 4, 4), torch.tensor([0]), None, None, 0)
    for wrong in ({"eps": -0.1}, {"eps": None}, {"eps": 0.1, "queries": 5}):
        with pytest.raises(ValueError, match=r"eps|queries"):
            Attack("pgd", **wrong)
    images = torch.rand(1, 3, 4, 4)
    assert Clean().apply(images, None, None, None, 0) is images


def test_part_of_the_rows_keeps_what_belongs_to_them(tiny, trained, store) -> None:
    attack = Attack("fgsm", 2 / 255)
    whole = evaluate(trained, tiny.test, [Corruption("fog", 3), attack], store=store)
    part = whole.where(whole.table["perturbation"] != "fog")
    assert part.table["perturbation"].unique().tolist() == ["clean", "fgsm"]
    np.testing.assert_array_equal(part.correct.mean(axis=1), part.table["accuracy"])
    for model in part.table["model"].unique():
        assert part.details(model, "fgsm").equals(whole.details(model, "fgsm"))
