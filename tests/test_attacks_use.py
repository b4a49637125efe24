"""Attacks in users' hands: gradient modes, layouts, models of all kinds, arguments of all types."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustlib import attacks, models
from robustlib.attacks import GradientWarning, ProbabilityWarning, info, names, registry, run
from robustlib.core import devices
from robustlib.core.identity import fingerprint
from robustlib.core.store import Store
from robustlib.data import Dataset
from robustlib.recipes import Standard
from robustlib.training import Budget, train

FAST: dict[str, dict[str, Any]] = {
    "pgd": {"steps": 3, "restarts": 2},
    "pgd_least_likely": {"steps": 3},
    "mi_fgsm": {"steps": 3},
    "cw": {"steps": 10},
    "ddn": {"steps": 10},
    "deepfool": {"steps": 4},
    "rays": {"queries": 40},
    "apgd_ce": {"steps": 5},
    "apgd_dlr": {"steps": 5},
    "square": {"queries": 15},
    "strong": {"steps": 5, "queries": 10},
}
GRADIENT = [name for name in names() if not info(name).black_box]
RADIUS = 0.2  # of the tiny images, whose brightest channel leads by about 0.4
BLACK_BOX = [name for name in names() if info(name).black_box]


def settings(name: str, eps: float = 0.004) -> dict[str, Any]:
    return {"eps": None if info(name).minimal else eps, **FAST.get(name, {})}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return models.build("small_resnet", classes=4, image_size=16, seed=0).eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1


@pytest.fixture(scope="module")
def labels(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images).argmax(1)


class Applied(nn.Module):
    """A network between two functions."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Any] = lambda x: x,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images: Tensor) -> Any:
        return self.after(self.network(self.before(images)))


def assert_same(first: attacks.AttackResult, second: attacks.AttackResult) -> None:
    assert torch.equal(first.adversarial, second.adversarial)
    assert torch.equal(first.robust_correct, second.robust_correct)
    assert torch.equal(first.clean_correct, second.clean_correct)
    assert torch.equal(first.norm, second.norm)
    assert torch.equal(first.steps, second.steps)
    assert second.adversarial.dtype == second.norm.dtype == torch.float32
    assert not second.adversarial.requires_grad
    assert not second.adversarial.is_inference()


# --- Where it is called ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_gradient_modes_autocast_and_default_dtype_change_nothing(
    name, model, images, labels
) -> None:
    plain = run(model, images, labels, name, **settings(name))
    assert not torch.equal(plain.adversarial, images)
    with torch.no_grad():
        assert_same(plain, run(model, images, labels, name, **settings(name)))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        made_here = images * 1, labels * 1
        assert made_here[0].is_inference()
        assert_same(plain, run(model, *made_here, name, **settings(name)))
    assert_same(plain, run(model, *made_here, name, **settings(name)))
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(plain, run(model, images, labels, name, **settings(name)))
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(plain, run(model, images, labels, name, **settings(name)))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", names())
def test_images_of_any_layout_and_history(name, model, images, labels) -> None:
    plain = run(model, images, labels, name, **settings(name))
    leaf = images.clone().requires_grad_()
    assert_same(plain, run(model, leaf, labels, name, **settings(name)))
    assert leaf.grad is None
    assert_same(plain, run(model, leaf * 1.0, labels, name, **settings(name)))
    assert leaf.grad is None
    last = images.to(memory_format=torch.channels_last)
    assert_same(plain, run(model, last, labels, name, **settings(name)))
    mirrored = images.flip(3).contiguous().flip(3).transpose(2, 3).contiguous().transpose(2, 3)
    assert not mirrored.is_contiguous()
    assert_same(plain, run(model, mirrored, labels, name, **settings(name)))
    expanded, one = images[:1].expand(4, -1, -1, -1), images[:1].repeat(4, 1, 1, 1)
    before = expanded.clone()
    result = run(model, expanded, labels[:1].expand(4), name, **settings(name))
    assert_same(run(model, one, labels[:1].repeat(4), name, **settings(name)), result)
    assert torch.equal(expanded, before)


@pytest.mark.parametrize("name", names())
def test_a_model_may_write_to_its_input(name, model, images, labels) -> None:
    apart = Applied(model, lambda x: (x - 0.01) * 1.02).eval()
    in_place = Applied(model, lambda x: x.sub_(0.01).mul_(1.02)).eval()
    given = images.clone()
    expected = run(apart, images, labels, name, **settings(name))
    assert_same(expected, run(in_place, given, labels, name, **settings(name)))
    assert torch.equal(given, images)


# --- Models without gradients ---------------------------------------------------------------------


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(x.detach().numpy().copy())


def without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        return x * 1.0


class Unregistered(nn.Module):
    """Its output requires a gradient, but not that of the images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.hidden = [torch.ones(4, requires_grad=True)]

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.detach()) * self.hidden[0]


class OneWay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0


CUTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "detach": lambda net: Applied(net, lambda x: x.detach()),
    "numpy": lambda net: Applied(net, through_numpy),
    "no_grad": lambda net: Applied(net, without_gradient),
    "thresholds": lambda net: Applied(net, lambda x: (x > 0.5).float()),
    "one-hot": lambda net: Applied(
        net, after=lambda z: 2 * nn.functional.one_hot(z.argmax(1), 4).float()
    ),
    "elsewhere": Unregistered,
    "no backward": lambda net: Applied(net, OneWay.apply),
}


@pytest.mark.parametrize("cut", list(CUTS))
def test_models_that_cut_the_graph_are_for_black_box_attacks(cut, model, images) -> None:
    broken = CUTS[cut](model).eval()
    with torch.no_grad():
        labels = broken(images).argmax(1)
    for name in GRADIENT:
        with pytest.raises(ValueError, match=r"no gradient comes back.*square and rays"):
            run(broken, images, labels, name, **settings(name))
    for name in BLACK_BOX:
        result = run(broken, images, labels, name, **settings(name, 0.1))
        assert result.clean_correct.all()
        assert not torch.equal(result.adversarial, images)


@pytest.mark.parametrize("name", GRADIENT)
def test_a_flat_model_is_warned_of(name, model, images) -> None:
    flat = Applied(model, lambda x: (x * 8).round() / 8).eval()
    with torch.no_grad():
        labels = flat(images).argmax(1)
    with pytest.warns(GradientWarning, match="gradient is zero on the first images"):
        run(flat, images, labels, name, **settings(name))


# --- Numbers that aren't finite -------------------------------------------------------------------


def deviation(x: Tensor) -> Tensor:
    """Of a corner; its gradient is NaN where the corner is constant."""
    return x[:, :, :2, :2].flatten(1).var(1).sqrt().view(-1, 1, 1, 1)


ROUGH: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "power": (lambda x: x ** (1 / 2.2), lambda x: (x + 1e-3) ** (1 / 2.2)),
    "root": (lambda x: x.sqrt(), lambda x: (x + 1e-3).sqrt()),
    "quotient": (lambda x: torch.where(x > 0, x * x / x, x), lambda x: x),
    "logarithm": (lambda x: x.log().exp(), lambda x: x),
    "deviation": (lambda x: x + 0.01 * deviation(x), lambda x: x),
    "everywhere": (lambda x: x + 1e-3 * x[:, :, :2, :2].sum((1, 2, 3), True).sqrt(), lambda x: x),
}


@pytest.fixture(scope="module")
def trained(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """The same on all hardware: the radii below suit it."""
    narrow = partial(models.residual_network, widths=(16, 48, 96))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.ARCHITECTURES, "small_resnet", narrow)
        patch.setattr(devices, "trains_in_bfloat16", lambda device: False)
        made = train(
            [Standard()],
            tiny,
            architecture="small_resnet",
            budget=Budget(epochs=6, batch_size=16),
            seeds=[0],
            store=Store(tmp_path_factory.mktemp("models")),
            device="cpu",
            progress=False,
        )
    return made[0].model.eval()


@pytest.mark.parametrize("rough", list(ROUGH))
@pytest.mark.parametrize("name", [name for name in GRADIENT if name != "strong"])
def test_gradients_that_are_not_finite_do_not_make_a_model_robust(
    name, rough, trained, tiny
) -> None:
    """It is beaten about as well as a smooth model that decides almost the same."""
    images = tiny.test.float_images(slice(0, 20))
    images[:, :, :2, :2] = 0
    before, smooth = (Applied(trained, function).eval() for function in ROUGH[rough])
    with torch.no_grad():
        labels = smooth(images).argmax(1)
    options: dict[str, Any] = {} if info(name).minimal else {"eps": RADIUS}
    if name.startswith("apgd"):
        options["steps"] = 20
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = run(before, images, labels, name, **options)
    starts_there = name in ("fgsm", "mi_fgsm", "cw", "ddn", "deepfool")
    assert len(caught) == 1 or (not caught and not starts_there)
    for warning in caught:
        assert issubclass(warning.category, GradientWarning)
        assert re.match(r"the gradient wasn't finite for \d+ of \d+ images", str(warning.message))
        assert warning.filename == __file__
    assert found.clean_correct.sum() >= 18
    if info(name).minimal:
        limit = 1.5 * run(smooth, images, labels, "ddn").norm.median().item()
        assert found.correct_within(limit).sum() <= 7
    else:
        usual = run(smooth, images, labels, name, **options).robust_correct.sum()
        assert found.robust_correct.sum() <= usual + 2
        assert usual <= 15, "the test can't tell"


def test_attacks_agree_on_a_trained_model(trained, tiny) -> None:
    images, labels = tiny.test.float_images(slice(0, 40)), tiny.test.labels[:40]
    ddn, cw, longer, deepfool = (
        run(trained, images, labels, name, **options)
        for name, options in (
            ("ddn", {}),
            ("cw", {}),
            ("cw", {"steps": 200}),
            ("deepfool", {}),
        )
    )
    assert not cw.robust_correct.any()
    for radius in ddn.norm[ddn.clean_correct].quantile(torch.tensor([0.2, 0.5, 0.8])).tolist():
        left = [r.correct_within(1.02 * radius).sum().item() for r in (ddn, cw, longer, deepfool)]
        assert abs(left[0] - left[1]) <= 2
        assert abs(left[1] - left[2]) <= 1
        assert left[3] >= left[1] - 2, "deepfool doesn't search for the nearest point"
    pgd, apgd, square, rays = (
        run(trained, images, labels, name, eps=0.12, **options).robust_correct.sum().item()
        for name, options in (
            ("pgd", {}),
            ("apgd_ce", {"steps": 50}),
            ("square", {"queries": 300}),
            ("rays", {"queries": 200}),
        )
    )
    assert 5 <= pgd <= 35
    assert abs(pgd - apgd) <= 2
    assert min(square, rays) >= min(pgd, apgd) - 1


def test_repaired_gradients_by_hand() -> None:
    inf, nan = float("inf"), float("nan")
    labels = torch.zeros(5, dtype=torch.int64)
    guard = attacks.guard.Guard(nn.Identity(), labels)
    given = torch.tensor(
        [[1.0, -2, 0, 3], [inf, -2, 0, -inf], [nan, 1, 0, -inf], [inf, -inf, 0, 0], [nan] * 4]
    )
    fixed = guard._repair(given.view(5, 1, 2, 2)).view(5, 4)
    expected = [[1.0, -2, 0, 3], [2, -2, 0, -2], [0, 1, 0, -1], [1, -1, 0, 0]]
    assert fixed[:4].tolist() == expected
    assert fixed[4].abs().tolist() == [1, 1, 1, 1]
    assert guard.repaired.tolist() == [False, True, True, True, True]
    part = guard.at(torch.tensor([0, 4])).at(torch.tensor([1]))
    assert torch.equal(part._repair(given[4:].view(1, 1, 2, 2)).view(4), fixed[4])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", names())
def test_logits_that_are_not_finite_count_as_wrong(name, bad, model, images, labels) -> None:
    """Where the mean of an image rises above a bound that its attack can reach."""
    bound = images.mean((1, 2, 3)).median().item()

    def spoil(x: Tensor) -> Tensor:
        self.seen = x.mean((1, 2, 3)) > bound
        return x

    def after(logits: Tensor) -> Tensor:
        spoiled = logits.clone()
        spoiled[self.seen, labels[0]] = bad
        return spoiled

    self = Applied(model, spoil, after).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradientWarning)
        result = run(self, images, labels, name, **settings(name))
    above = images.mean((1, 2, 3)) > bound
    assert above.any()
    assert not result.clean_correct[above].any()
    assert result.clean_correct[~above].all()
    assert result.adversarial.isfinite().all()
    assert result.norm.isfinite().all()
    with torch.no_grad():
        logits = self(result.adversarial.clone())
    right = logits.isfinite().all(1) & (logits.argmax(1) == labels)
    assert torch.equal(result.robust_correct, right & result.clean_correct)


# --- What a model may be --------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize(
    ("after", "match"),
    [
        (lambda z: z[:, :1], "has 1 output"),
        (lambda z: z[:, :, None, None], r"\(8, 4, 1, 1\)"),
        (lambda z: z[0], r"\(8, classes\)"),
        (lambda z: z.argmax(1), r"\(8,\)"),
        (lambda z: z.long(), "int64"),
        (lambda z: {"logits": z}, "keys logits"),
        (lambda z: (z, z), "tuple of 2"),
        (lambda z: z.detach().numpy(), "ndarray"),
        (lambda z: z[:, :2], "2 outputs, but the labels go up to 3"),
    ],
)
def test_other_outputs_are_refused(name, after, match, model, images) -> None:
    labels = torch.tensor([0, 1, 2, 3] * 2)
    with pytest.raises(ValueError, match=match):
        run(Applied(model, after=after).eval(), images, labels, name, **settings(name))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_work_or_are_refused(dtype, images) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)).eval()
    with torch.no_grad():
        labels = network(images).argmax(1)
    network = network.to(dtype)
    cast = Applied(network, lambda x: x.to(dtype)).eval()
    for name in names():
        with pytest.raises(ValueError, match=rf"parameters of {dtype}.*model\.float\(\)"):
            run(network, images, labels, name, **settings(name))
        result = run(cast, images, labels, name, **settings(name, 0.1))
        assert result.adversarial.dtype == torch.float32
        assert result.clean_correct.sum() >= 6
        assert not result.robust_correct.all()


class Bare(nn.Module):
    """Without parameters: logits are means of parts of the image."""

    def forward(self, images: Tensor) -> Tensor:
        return 10 * nn.functional.adaptive_avg_pool2d(images, 2).mean(1).flatten(1)


@pytest.mark.parametrize("name", names())
def test_models_without_parameters_and_torchscript(name, model, images, labels) -> None:
    own = Bare()(images).argmax(1)
    bare = run(Bare().eval(), images, own, name, **settings(name, 0.1))
    assert not bare.robust_correct.all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.trace(model, images[:2])
        frozen = torch.jit.freeze(script)
    plain = run(model, images, labels, name, **settings(name))
    for network in (script, frozen):
        traced = run(network, images, labels, name, **settings(name))
        assert torch.equal(traced.clean_correct, plain.clean_correct)
        assert (traced.robust_correct != plain.robust_correct).sum() <= 1, "rounding"


def test_a_model_on_another_device_is_refused(images, labels) -> None:
    network = models.build("small_resnet", classes=4, image_size=16, seed=0).to("meta").eval()
    for name in names():
        with pytest.raises(ValueError, match="on meta, but the images are on cpu"):
            run(network, images, labels, name, **settings(name))


@pytest.mark.parametrize("name", names())
def test_probabilities_are_warned_of(name, model, images, labels) -> None:
    softmax = Applied(model, after=lambda z: z.softmax(1)).eval()
    with pytest.warns(ProbabilityWarning, match="take the softmax out") as caught:
        run(softmax, images, labels, name, **settings(name))
    assert caught[0].filename == __file__


# --- Arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_arguments_of_other_types(name, model, images, labels) -> None:
    options = {key: float(value) for key, value in FAST.get(name, {}).items()}
    plain_options = FAST.get(name, {})
    ids = torch.arange(8) + 5
    plain = run(model, images, labels, name, eps=8 / 255, seed=3, ids=ids, **plain_options)
    for eps in ("8/255", np.float64(8 / 255), torch.tensor(8 / 255, dtype=torch.float64)):
        given = {"eps": eps, "seed": np.int64(3), **options}
        assert_same(plain, run(model, images, labels.tolist(), name, ids=ids.tolist(), **given))
        assert_same(plain, run(model, images, labels.numpy(), name, ids=ids.numpy(), **given))
        assert_same(plain, run(model, images, labels.int(), name, ids=ids.int(), **given))
    single = run(model, images, labels, name, eps=np.float32(8 / 255), **plain_options)
    torch.testing.assert_close(single.norm, plain.norm, rtol=1e-3, atol=1e-5)
    if info(name).targets:
        targets = (labels + 1) % 4
        aimed = run(model, images, labels, name, eps=0.03, targets=targets, **plain_options)
        for given in (targets.tolist(), targets.numpy(), targets.int()):
            other = run(model, images, labels, name, eps=0.03, targets=given, **plain_options)
            assert_same(aimed, other)
        for wrong in (targets.float(), targets[:3], targets - 5, targets + 4, labels, "abc"):
            with pytest.raises(ValueError, match="targets"):
                run(model, images, labels, name, eps=0.03, targets=wrong, **plain_options)


# --- What a result depends on ---------------------------------------------------------------------


@pytest.fixture
def another_attack() -> Iterator[None]:
    def another(task: registry.Task, *, strength: int = 3) -> tuple[Tensor, Tensor]:
        return task.images, registry.counted(task, strength)

    registry.register("Linf", targets=False, source="nowhere")(another)
    yield
    del registry.REGISTRY["another"]


def key(name: str) -> str:
    return fingerprint(attacks.run, attacks.info(name))


def test_fingerprints_tell_attacks_apart() -> None:
    assert len({key(name) for name in names()}) == len(names())
    assert [key(name) for name in names()] == [key(name) for name in names()]


def test_another_attack_or_docstring_changes_no_fingerprint(request, monkeypatch) -> None:
    before = {name: key(name) for name in names()}
    request.getfixturevalue("another_attack")
    assert {name: key(name) for name in names()} == before
    assert key("another") not in before.values()
    monkeypatch.setattr(attacks.gradient._State, "__doc__", "Other words.")
    monkeypatch.setattr(attacks.run, "__doc__", "Other words.")
    for name in names():
        monkeypatch.setattr(info(name).function, "__doc__", "Other words.")
    assert {name: key(name) for name in names()} == before


def test_fingerprints_cover_foolbox(monkeypatch) -> None:
    before = key("deepfool")
    monkeypatch.setattr("robustlib.core.identity._version", lambda package: f"not {package}")
    assert key("deepfool") != before
    monkeypatch.undo()
    assert key("deepfool") == before


def test_fingerprints_cover_what_an_attack_calls(monkeypatch) -> None:
    before = {name: key(name) for name in names()}
    monkeypatch.setattr(attacks.auto, "checkpoints", lambda steps: [0, steps])
    changed = {name for name in names() if key(name) != before[name]}
    assert changed == {"apgd_ce", "apgd_dlr", "strong"}
    monkeypatch.undo()
    monkeypatch.setattr(attacks.guard, "_LARGEST", 1e9)
    assert all(key(name) != before[name] for name in names())
