"""Models that were not trained here: any network, through `models.wrap`."""

from __future__ import annotations

import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from robustlib import corruptions
from robustlib.analysis import corruption_errors, mce
from robustlib.core.inference import ProbabilityWarning, TrainModeWarning, device_of, evaluating
from robustlib.core.store import Store
from robustlib.corruptions import registry
from robustlib.data import Dataset
from robustlib.evaluation import accuracy_against_radius, evaluate, predict, sanity_table
from robustlib.models import Classifier, wrap
from robustlib.perturbations import Attack, Clean, corruption_grid

CELLS = [*corruption_grid(["gray_scale", "contrast"], [1, 5]), Attack("fgsm", 0.02)]


class Means(nn.Module):
    """Logits that are the channel means: right on most images of the tiny data set."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(10.0))
        self.norm = nn.BatchNorm1d(3, affine=False)
        self.classes = classes

    def forward(self, images: Tensor) -> Tensor:
        logits = self.factor * images.mean((2, 3))
        return nn.functional.pad(logits, (0, self.classes - 3)) if self.classes > 3 else logits


def own(**options: Any) -> Classifier:
    return wrap(Means().eval(), **{"name": "mine", **options})


def accuracy(model: Classifier, data: Dataset, store: Store, *cells: Any) -> np.ndarray:
    result = evaluate([model], data.test, cells, store=store, progress=False)
    return result.table["accuracy"].to_numpy()


def test_a_network_goes_all_the_way(tiny: Dataset, store: Store) -> None:
    models = [own(), wrap(Means(5).eval(), name="other", seed=np.int64(1))]
    result = evaluate(models, tiny.test, CELLS, store=store, progress=False)
    assert result.computed == len(result.table) == 12
    assert result.table["model"].unique().tolist() == ["mine-0", "other-1"]
    assert result.table["architecture"].unique().tolist() == ["Means"]
    clean = result.table.query("perturbation == 'clean'")["accuracy"]
    expected = (tiny.test.float_images().mean((2, 3)).argmax(1) == tiny.test.labels).float().mean()
    assert clean.tolist() == pytest.approx([expected.item()] * 2)
    errors = corruption_errors(result.table, reference="mine")
    assert mce(errors, ["gray_scale"])["mine"] == pytest.approx(100)
    again = evaluate(models, tiny.test, CELLS, store=store, progress=False)
    assert again.computed == 0
    curve = accuracy_against_radius(models, tiny.test, ["ddn"], [0.5], store=store, progress=False)
    assert curve["accuracy"].between(0, 1).all()
    checks = sanity_table(models, tiny.test.first(10), eps="2/255", store=store, progress=False)
    assert checks.groupby("model")["check"].nunique().tolist() == [9, 9]


def test_changed_weights_buffers_and_settings_never_meet_an_old_result(
    tiny: Dataset, store: Store
) -> None:
    model = own()
    changes: list[Callable[[Any], Any]] = [
        lambda m: m.factor.data.mul_(2),
        lambda m: m.norm.running_mean.add_(1),
        lambda m: setattr(m, "classes", 4),
    ]
    assert evaluate([model], tiny.test, [], store=store, progress=False).computed == 1
    for change in changes:
        change(model.model)
        assert evaluate([model], tiny.test, [], store=store, progress=False).computed == 1
        assert evaluate([model], tiny.test, [], store=store, progress=False).computed == 0


class Wrong(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, images: Tensor) -> Any:
        return self.make(10 * images.mean((2, 3)))


Output = namedtuple("Output", ["loss", "logits"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda z: {"logits": z}, "a dict with the keys logits.*output="),
        (lambda z: (z, z), "a tuple of 2.*output="),
        (lambda z: Output(0, z), "a Output of 2.*output="),
        (lambda z: z[:, :1], "1 output"),
        (lambda z: z[:, :2], "2 outputs, but the labels go up to 2"),
        (lambda z: z.argmax(1), r"shape \(8,\)"),
        (lambda z: nn.functional.one_hot(z.argmax(1), 3), "int64"),
        (lambda z: z[:1], r"shape \(1, 3\)"),
        (lambda z: z[..., None], r"shape \(8, 3, 1\)"),
        (lambda z: z / 0, "aren't finite"),
        (lambda z: z.masked_fill(z < z.amax(1, keepdim=True), -torch.inf), "minus infinity"),
    ],
)
def test_an_output_that_is_no_logits_is_refused_before_work(
    make: Any, message: str, tiny: Dataset, store: Store
) -> None:
    model = wrap(Wrong(make).eval(), name="wrong")
    with pytest.raises(ValueError, match=message):
        evaluate([own(), model], tiny.test, CELLS, store=store, progress=False)


@pytest.mark.parametrize(
    ("make", "output"),
    [
        (lambda z: {"logits": z, "loss": 0}, "logits"),
        (lambda z: (0, z), 1),
        (lambda z: [z], -1),
        (lambda z: Output(0, z), "logits"),
        (lambda z: Output(0, z), 1),
    ],
)
def test_logits_are_picked(make: Any, output: Any, tiny: Dataset, store: Store) -> None:
    picked = wrap(Wrong(make).eval(), name="picked", output=output)
    assert picked.architecture == "Wrong"
    assert (accuracy(picked, tiny, store) == accuracy(own(), tiny, store)).all()
    with pytest.raises(ValueError, match="has no 'logit'"):
        accuracy(wrap(Wrong(make).eval(), name="x", output="logit"), tiny, store)


def test_probabilities_are_warned_of(tiny: Dataset, store: Store) -> None:
    model = wrap(Wrong(lambda z: z.softmax(1)).eval(), name="soft")
    with pytest.warns(ProbabilityWarning, match=r"pgd.*cw.*apgd_dlr.*deepfool"):
        found = accuracy(model, tiny, store)
    assert (found == accuracy(own(), tiny, store)).all()


def test_outputs_that_are_not_finite_count_as_wrong(tiny: Dataset, store: Store) -> None:
    """The first eight images are asked before work, so the fault lies beyond them."""

    class Sometimes(Means):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            logits[8:, 0] = torch.nan
            return logits

    found = evaluate(
        [wrap(Sometimes().eval(), name="x")], tiny.test, [], store=store, progress=False
    )
    expected = tiny.test.float_images().mean((2, 3)).argmax(1) == tiny.test.labels
    expected[8:] = False
    np.testing.assert_array_equal(found.correct[0], expected.numpy())


def test_a_model_in_train_mode_is_evaluated_in_eval_mode(tiny: Dataset, store: Store) -> None:
    class Dropping(Means):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.9)
            self.fixed = nn.BatchNorm2d(3)

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(self.drop(self.fixed(images)))

    network = Dropping().train()
    network.fixed.eval()
    network.factor.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.warns(TrainModeWarning):
        found = accuracy(wrap(network, name="x"), tiny, store, *CELLS)
    assert [network.training, network.drop.training, network.fixed.training] == [True, True, False]
    assert [p.requires_grad for p in network.parameters()] == [False, True, True]
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = accuracy(wrap(network.eval(), name="x"), tiny, Store(store.root / "b"), *CELLS)
    assert (found == again).all()


def test_buffers_come_back_as_they_were(tiny: Dataset, store: Store) -> None:
    class Counting(Means):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            self.last = images.mean()
            return super().forward(images)

    network = Counting().eval()
    network.register_buffer("last", torch.tensor(5.0))
    accuracy(wrap(network, name="x"), tiny, store, *CELLS)
    assert network.calls == 0
    assert network.last == 5


class InPlace(Means):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.5).mul_(4))


def test_a_model_may_write_to_its_input(tiny: Dataset, store: Store) -> None:
    models = [wrap(InPlace().eval(), name="a"), wrap(InPlace().eval(), name="b")]
    result = evaluate(models, tiny.test, CELLS, store=store, progress=False, batch_size=60)
    first, second = (rows["accuracy"].tolist() for _, rows in result.table.groupby("model"))
    assert first == second
    images = torch.rand(2, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    before = images.clone()
    predict(models[0].model, images)
    assert torch.equal(images, before)


def test_normalisation_is_added_on_request(tiny: Dataset, store: Store) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    model = wrap(Means().eval(), name="x", mean=mean, std=std)
    images = torch.rand(4, 3, 8, 8)
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    torch.testing.assert_close(model.model(images), Means()((images - shift) / scale))
    assert not model.model.training
    assert model.identity() != wrap(Means().eval(), name="x").identity()
    for wrong in ({"mean": mean}, {"mean": mean, "std": (0, 1, 1)}, {"mean": (0,), "std": std}):
        with pytest.raises(ValueError, match=r"mean|std"):
            wrap(Means(), name="x", **wrong)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_file(tiny: Dataset, store: Store, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(Means().eval(), torch.rand(2, 3, 16, 16)), tmp_path / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        models = [
            wrap(tmp_path / "net.pt", name="script"),
            wrap(str(tmp_path / "net.pt"), name="s"),
        ]
    assert models[0].architecture == "Means"
    assert models[0].identity() == models[1].identity()
    assert (accuracy(models[0], tiny, store, *CELLS) == accuracy(own(), tiny, store, *CELLS)).all()
    assert evaluate(models[1:], tiny.test, CELLS, store=store, progress=False).computed == 0
    (tmp_path / "no.pt").write_bytes(b"no model")
    for file in ("no.pt", "none.pt"):
        with pytest.raises(ValueError, match=rf"{file} can't be read as a TorchScript file"):
            wrap(tmp_path / file, name="x")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="Build the network in Python"):
        wrap(tmp_path / "weights.pt", name="x")


def test_a_network_of_torchvision(tiny: Dataset, store: Store) -> None:
    import torchvision

    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=3).eval()
    model = wrap(network, name="tv")
    assert model.architecture == "ResNet"
    part = tiny.test.first(20)
    result = evaluate([model], part, CELLS[-1:], store=store, progress=False)
    assert len(result.table) == 2
    assert evaluate([model], part, CELLS[-1:], store=store, progress=False).computed == 0


def test_a_network_without_parameters(tiny: Dataset, store: Store) -> None:
    network = Wrong(lambda z: z).eval()
    assert device_of(network).type == "cpu"
    assert (
        accuracy(wrap(network, name="x"), tiny, store, *CELLS)
        == accuracy(own(), tiny, store, *CELLS)
    ).all()


def test_what_is_no_model_is_refused(tiny: Dataset, store: Store) -> None:
    with pytest.raises(ValueError, match=r"models.wrap\(network"):
        evaluate([Means()], tiny.test, [], store=store)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"torch\.nn\.Module, got function"):
        wrap(lambda x: x, name="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give its attribute \.model"):
        wrap(own(), name="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="several models are called mine-0"):
        evaluate([own(), own()], tiny.test, [], store=store)
    with pytest.raises(ValueError, match="seed must be an integer"):
        wrap(Means(), name="x", seed="a")  # type: ignore[arg-type]


def test_evaluation_is_float32_whoever_calls(tiny: Dataset, store: Store) -> None:
    seen = []

    class Noting(Means):
        def forward(self, images: Tensor) -> Tensor:
            precisions = torch.backends.cudnn.conv, torch.backends.cuda.matmul
            seen.append((images @ images.mT).dtype)
            seen.extend(switch.fp32_precision for switch in precisions)
            return super().forward(images)

    before = torch.backends.cudnn.conv.fp32_precision
    with torch.autocast("cpu", dtype=torch.bfloat16):
        accuracy(wrap(Noting().eval(), name="x"), tiny, store)
    assert set(seen) == {torch.float32, "ieee"}
    assert torch.backends.cudnn.conv.fp32_precision == before


def test_a_model_built_under_inference_mode_is_refused() -> None:
    with torch.inference_mode():
        network = Means().eval()
    with pytest.raises(ValueError, match="inference_mode"), evaluating(network):
        pass


class Doubled:
    """A perturbation of a user's own, without a key."""

    name = label = "doubled"
    family = "own"
    severity = 0
    needs_model = False
    factor = 2.0

    def apply(self, images: Tensor, *_: Any) -> Tensor:
        return (self.factor * images).clamp(0, 1)


def test_a_perturbation_of_ones_own(tiny: Dataset, store: Store) -> None:
    first = evaluate([own()], tiny.test, [Doubled()], store=store, progress=False)
    assert first.table["perturbation"].tolist() == ["clean", "doubled"]
    assert evaluate([own()], tiny.test, [Doubled()], store=store, progress=False).computed == 0
    other = Doubled()
    other.factor = 3.0
    assert evaluate([own()], tiny.test, [other], store=store, progress=False).computed == 1


def test_numbers_of_other_types(tiny: Dataset, store: Store) -> None:
    plain = evaluate([own()], tiny.test, CELLS, store=store, progress=False)
    cells = [*corruption_grid(["gray_scale", "contrast"], np.array([1, 5])), Clean()]
    cells.append(Attack("fgsm", np.float32(0.5) * np.float32(0.04)))
    other = evaluate(
        [own()],
        tiny.test,
        [*cells[:-1], Attack("fgsm", "1/50")],
        store=store,
        seed=np.int64(0),
        batch_size=torch.tensor(20),
        progress=False,
    )
    assert other.computed == 0
    pd.testing.assert_frame_equal(other.table, plain.table)


def test_what_is_looked_up_by_name_counts_in_code_of_ones_own(
    tiny: Dataset, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Foggy(Doubled):
        def apply(self, images: Tensor, *_: Any) -> Tensor:
            return corruptions.corrupt(images, "fog", 3)

    class Within(Means):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(corruptions.corrupt(images, "fog", 3))

    def computed() -> list[int]:
        return [
            evaluate([model], tiny.test, cells, store=store, progress=False).computed
            for model, cells in ((own(), [Foggy()]), (wrap(Within().eval(), name="fog"), []))
        ]

    assert computed() == [2, 1]
    assert computed() == [0, 0]
    edited = replace(corruptions.info("fog"), function=lambda images, *_, **__: images / 2)
    monkeypatch.setitem(registry.REGISTRY, "fog", edited)
    assert computed() == [1, 1]
