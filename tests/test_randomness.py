from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from robustlib.core.randomness import Stream, derive_seed

GOLDEN_SEED = 5399194072410688700
GOLDEN_BITS = [
    [-540235136, 1305462234],
    [1342846634, -1123519930],
    [-1951723723, 2138405186],
    [1188477828, 1481393452],
]
GOLDEN_INTEGERS = [[520, 770], [806, 218], [350, 522], [163, 480]]
GOLDEN_NORMAL = [
    [-0.142697, -0.925413],
    [0.440722, 0.316924],
    [1.369478, 0.052592],
    [-0.604796, -0.27217],
]


def stream(seed: int = 0, n: int = 64, name: str = "test", severity: int = 1) -> Stream:
    return Stream(seed, torch.arange(n), name, severity)


def correlation(a: Tensor, b: Tensor) -> float:
    return torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1].item()


def test_golden_values() -> None:
    ids = torch.tensor([0, 1, -1, 2**40 + 1])
    s = Stream(7, ids, "golden", 3)
    assert s.bits(2).tolist() == GOLDEN_BITS
    assert s.integers(0, 1000, (2,)).tolist() == GOLDEN_INTEGERS
    expected = torch.tensor(GOLDEN_NORMAL)
    torch.testing.assert_close(s.normal((2,)), expected, rtol=0, atol=1e-5)


def test_derive_seed() -> None:
    assert derive_seed("a", 1) == GOLDEN_SEED
    different = {derive_seed(*p) for p in [("a", 1), ("a", "1"), (1, "a"), ("a1",), ("a", 1, 0)]}
    assert len(different) == 5
    assert 0 <= derive_seed("x", -5) < 2**63
    for bad in (1.0, True, None):
        with pytest.raises(ValueError, match="int and str"):
            derive_seed(bad)  # type: ignore[arg-type]


def test_uniform_is_uniform_and_open() -> None:
    u = stream(n=256).uniform((4096,))
    assert u.dtype == torch.float32
    assert u.shape == (256, 4096)
    assert 0 < u.min() < 1e-5
    assert 1 - 1e-5 < u.max() < 1
    counts = torch.histc(u, 256, 0, 1)
    expected = u.numel() / 256
    chi2 = ((counts - expected) ** 2 / expected).sum().item()
    assert 255 - 5 * math.sqrt(510) < chi2 < 255 + 5 * math.sqrt(510)


def test_every_bit_is_balanced() -> None:
    words = stream(n=64).bits(4096).long() & 0xFFFFFFFF
    for bit in range(32):
        assert abs(((words >> bit) & 1).double().mean() - 0.5) < 5 * 0.5 / 512


def test_normal_moments_and_tails() -> None:
    z = stream(n=256).normal((3, 32, 32)).double()
    n = z.numel()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs((z.abs() > 3).double().mean() - 0.0026998) < 5 * math.sqrt(0.0027 / n)
    halves = z.flatten(1).chunk(2, dim=1)  # the two outputs of Box-Muller
    assert abs(correlation(*halves)) < 5 / math.sqrt(n / 2)
    assert abs(correlation(halves[0] ** 2, halves[1] ** 2)) < 5 / math.sqrt(n / 2)


def test_mean_and_std_are_applied() -> None:
    z = stream().normal((1001,))
    torch.testing.assert_close(stream().normal((1001,), mean=2.0, std=3.0), 2 + 3 * z)


def test_integers() -> None:
    x = stream().integers(-3, 4, (2000,))
    assert x.dtype == torch.int64
    counts = torch.bincount((x + 3).flatten(), minlength=7)
    assert len(counts) == 7
    expected = x.numel() / 7
    assert ((counts - expected) ** 2 / expected).sum() < 30
    assert stream().integers(5, 6, (3,)).unique().tolist() == [5]
    assert stream().integers(0, 2**31, (9,)).min() >= 0
    with pytest.raises(ValueError, match="low < high"):
        stream().integers(2, 2)


def test_bernoulli_and_sign() -> None:
    assert abs(stream().bernoulli(0.3, (4096,)).double().mean() - 0.3) < 0.005
    assert not stream().bernoulli(0.0, (50,)).any()
    assert stream().bernoulli(1.0, (50,)).all()
    signs = stream().sign((4096,))
    assert signs.unique().tolist() == [-1, 1]
    assert abs(signs.mean()) < 0.01


@pytest.mark.parametrize(
    "other",
    [
        Stream(1, torch.arange(64), "test", 1),
        Stream(-1, torch.arange(64), "test", 1),
        Stream(2**40, torch.arange(64), "test", 1),
        Stream(0, torch.arange(64), "tesu", 1),
        Stream(0, torch.arange(64), "test", 2),
        Stream(0, torch.arange(64) + 1, "test", 1),
        Stream(0, torch.arange(64) + 2**32, "test", 1),
        Stream(0, torch.arange(64) - 64, "test", 1),
        Stream(0, -torch.arange(64) - 1, "test", 1),
        Stream(0, torch.arange(64) << 32 | 7, "test", 1),
    ],
)
def test_other_keys_are_independent(other: Stream) -> None:
    a, b = stream().uniform((4096,)), other.uniform((4096,))
    assert abs(correlation(a, b)) < 5 / math.sqrt(a.numel())
    assert abs(correlation(a[:, 1:], b[:, :-1])) < 5 / math.sqrt(a.numel())


def test_images_and_counters_are_independent() -> None:
    u = stream(n=512).uniform((1024,)) - 0.5
    bound = 5.5 / math.sqrt(u.numel())
    for lag in (1, 2, 3, 64, 256):
        assert abs(correlation(u[lag:], u[:-lag])) < bound
        assert abs(correlation(u[:, lag:], u[:, :-lag])) < 2 * bound
    images = torch.corrcoef(u)
    images.fill_diagonal_(0)
    assert images.abs().max() < 6 / math.sqrt(1024)
    places = torch.corrcoef(u.T)
    places.fill_diagonal_(0)
    assert places.abs().max() < 6 / math.sqrt(512)


def test_first_numbers_of_many_images() -> None:
    u = Stream(0, torch.arange(200_000), "test").uniform()
    counts = torch.histc(u, 100, 0, 1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 99 + 5 * math.sqrt(198)
    assert abs(correlation(u[1:], u[:-1])) < 5 / math.sqrt(2e5)


def test_extreme_ids_have_keys_of_their_own() -> None:
    ids = torch.tensor([0, 1, -1, 2**31, -(2**31), 2**32, 2**63 - 1, -(2**63)])
    first = Stream(0, ids, "test").bits(4)
    assert len(set(map(tuple, first.tolist()))) == len(ids)


def test_split_order_and_calls() -> None:
    whole = stream(n=37).normal((3, 7, 5))
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    for size in (1, 3, 10):
        parts = [Stream(0, ids, "test", 1).normal((3, 7, 5)) for ids in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])
    s = stream()
    pieces = torch.cat((s.bits(5), s.bits(6)), dim=1)
    assert torch.equal(pieces, stream().bits(11))


def test_shapes() -> None:
    assert stream(n=3).uniform().shape == (3,)
    assert stream(n=3).normal((5,)).shape == (3, 5)
    assert stream(n=0).normal((2, 3)).shape == (0, 2, 3)
    assert stream(n=2).normal((0,)).shape == (2, 0)
    low_high = stream(n=3).uniform((1000,), -2.0, 5.0)
    assert -2 < low_high.min() < -1.9
    assert 4.9 < low_high.max() < 5


@pytest.mark.parametrize("ids", [torch.zeros(3), torch.zeros(3, 1, dtype=torch.int64)])
def test_bad_ids(ids: Tensor) -> None:
    with pytest.raises(ValueError, match="int64"):
        Stream(0, ids, "test")


def test_parts_of_a_stream_have_its_numbers() -> None:
    ids = torch.tensor([3, 1, 2**40, 7, 5])
    whole, start = Stream(4, ids, "split"), Stream(4, ids, "split")
    assert torch.equal(whole.bits(2), start.bits(2))
    parts = list(start.split(2))
    assert [part.n for part in parts] == [2, 2, 1]
    for count in (3, 4):
        expected = whole.normal((count,))
        assert torch.equal(torch.cat([part.normal((count,)) for part in parts]), expected)
