import numpy as np
import pytest
import torch

from robustlib import models
from robustlib.core.checks import UnknownNameError


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("small_resnet", 16), ("small_resnet", 33), ("small_resnet", 128), ("resnet18", 32)]
    + [("small_vgg", size) for size in (8, 32, 224)],
)
def test_models_map_images_to_logits(architecture: str, size: int) -> None:
    model = models.build(architecture, classes=7, image_size=size, seed=0)
    assert model(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_small_vgg_is_as_large_as_small_resnet_and_has_no_shortcut() -> None:
    plain, residual = (
        models.build(name, classes=10, image_size=32, seed=0)
        for name in ("small_vgg", "small_resnet")
    )
    sizes = [sum(p.numel() for p in network.parameters()) for network in (plain, residual)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    assert not any(isinstance(module, models.ResidualBlock) for module in plain.modules())


def test_resnets_keep_the_resolution_of_small_images_only() -> None:
    small = models.build("resnet50", classes=2, image_size=32, seed=0)
    large = models.build("resnet50", classes=2, image_size=224, seed=0)
    assert small[1].conv1.stride == (1, 1)
    assert large[1].conv1.stride == (2, 2)


def test_weights_depend_on_the_seed_and_nothing_else() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = models.build("small_resnet", classes=3, image_size=32, seed=seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    torch.manual_seed(5)
    first = weights(1)
    state = torch.get_rng_state()
    assert torch.equal(first, weights(1))
    assert not torch.equal(first, weights(2))
    assert torch.equal(state, torch.get_rng_state())


def test_normalisation_is_inside() -> None:
    model = models.build("small_resnet", classes=3, image_size=32, seed=0)
    pixels = torch.tensor([0.0, 0.5, 1.0]).expand(1, 3, 1, 3)
    assert model[0](pixels)[0, 2, 0].tolist() == [-2.0, 0.0, 2.0]
    assert "0.mean" not in model.state_dict()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_adds_its_shortcut_and_leaves_its_input(stride: int) -> None:
    block = models.ResidualBlock(4, 4, stride)
    images = torch.randn(2, 4, 6, 6, requires_grad=True)
    before = images.detach().clone()
    sums = block(images)
    expected = torch.relu(block.residual(images) + block.shortcut(images))
    torch.testing.assert_close(sums, expected)
    assert torch.equal(images, before)
    weights = torch.randn_like(sums)
    found, wanted = (
        torch.autograd.grad((x * weights).sum(), [images, *block.parameters()])
        for x in (sums, expected)
    )
    torch.testing.assert_close(found, wanted)


def test_widths_and_halvings() -> None:
    network = models.residual_network(5, 64, widths=(4, 8, 16))
    images = torch.zeros(1, 3, 64, 64)
    shapes = []
    for module in network:
        images = module(images)
        if isinstance(module, models.ResidualBlock):
            shapes.append(tuple(images.shape[1:]))
    assert shapes == [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert images.shape == (1, 5)


def test_parameter_count_of_a_linear_layer() -> None:
    assert models.parameter_count(torch.nn.Linear(4, 3)) == 15


def test_bad_arguments() -> None:
    with pytest.raises(UnknownNameError, match="resnet18"):
        models.build("resnet81", classes=3, image_size=32, seed=0)
    with pytest.raises(ValueError, match="classes must be an integer of at least 2"):
        models.build("small_resnet", classes=1, image_size=32, seed=0)


def test_numbers_of_other_types_and_another_default_type_change_nothing() -> None:
    plain = models.build("small_resnet", classes=3, image_size=32, seed=1)
    torch.set_default_dtype(torch.float64)
    try:
        other = models.build("small_resnet", classes=3.0, image_size=np.int64(32), seed=np.int8(1))
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    for first, second in zip(plain.parameters(), other.parameters(), strict=True):
        assert first.dtype == torch.float32
        assert torch.equal(first, second)


def test_a_norm_in_eval_mode_is_folded_into_its_convolution() -> None:
    """Against the two layers one after the other, for outputs and gradients."""
    torch.manual_seed(0)
    pair = models.ConvNorm(3, 5, 3, 2)
    for values in (pair[1].weight, pair[1].bias, pair[1].running_mean):
        torch.nn.init.normal_(values)
    torch.nn.init.uniform_(pair[1].running_var, 0.5, 2)
    images = torch.rand(4, 3, 9, 9, requires_grad=True)
    pair.eval()
    expected = pair[1](pair[0](images))
    folded = pair(images)
    torch.testing.assert_close(folded, expected)
    inputs = (images, pair[0].weight, pair[1].weight, pair[1].bias)
    direction = torch.rand_like(expected)
    for one, other in zip(
        torch.autograd.grad(folded, inputs, direction),
        torch.autograd.grad(expected, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    pair.train()
    before = pair[1].running_mean.clone()
    torch.testing.assert_close(pair(images).mean((0, 2, 3)), pair[1].bias)
    assert not torch.equal(pair[1].running_mean, before)
