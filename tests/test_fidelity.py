from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from benchmarks import fidelity
from robustlib import corruptions

SIDE, N = 16, 6
NAMES = ("gaussian_noise", "glass_blur", "brightness", "jpeg_compression")


def pictures() -> Tensor:
    """uint8 (N, 3, SIDE, SIDE): waves of their own, with some texture."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(0, 6, SIDE)
    waves = torch.sin(x + torch.arange(3 * N).reshape(N, 3, 1, 1)) * torch.cos(x)[:, None]
    texture = torch.rand((N, 3, SIDE, SIDE), generator=generator)
    return (100 + 60 * waves + 50 * texture).to(torch.uint8)


def make_folder(folder: Path, *, shift: str = "") -> Path:
    """A reference made from our own outputs; those of the corruption `shift` 40 levels higher."""
    clean = pictures()
    arrays = {"clean": clean}
    for name in NAMES:
        outputs = [
            fidelity.to_levels(corruptions.corrupt(clean / 255, name, severity))
            for severity in range(1, 6)
        ]
        added = 40 if name == shift else 0
        arrays[name] = (torch.stack(outputs) + added).clamp(0, 255).to(torch.uint8)
    np.savez(
        folder / f"corruptions_{SIDE}.npz",
        **{key: value.movedim(-3, -1).numpy() for key, value in arrays.items()},
    )
    stds = {"draws": 5, "std_between_draws": dict.fromkeys(fidelity.STATISTICS.values(), 0.0)}
    entries = {name: {str(severity): stds for severity in range(1, 6)} for name in NAMES}
    facts = {"images": {str(SIDE): {"n": 2 * N}}, "statistics": {str(SIDE): entries}}
    (folder / "corruption_stats.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(autouse=True)
def few_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corruptions, "names", lambda suite: NAMES)


# The statistics


def test_levels_are_cut_off_and_whole_levels_stay() -> None:
    levels = torch.arange(256)
    assert torch.equal(fidelity.to_levels(levels / 255), levels.float())
    assert fidelity.to_levels(torch.tensor([10.9 / 255])).item() == 10


def test_change_and_rmse_by_hand() -> None:
    clean = torch.full((1, 3, 1, 2), 100, dtype=torch.uint8)
    corrupted = clean.clone()
    corrupted[..., 0] = 49
    assert fidelity.mean_absolute_change(clean, corrupted) == pytest.approx(0.1)
    assert fidelity.rmse(clean, corrupted) == pytest.approx(0.2 / math.sqrt(2))


def test_ssim_of_identical_images_is_one() -> None:
    assert fidelity.ssim(pictures(), pictures()) == pytest.approx(1, abs=1e-12)


def test_ssim_of_two_constants_by_hand() -> None:
    dark, bright = torch.full((1, 3, 7, 7), 50.0), torch.full((1, 3, 7, 7), 100.0)
    c1 = 2.55**2
    expected = (2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)
    assert fidelity.ssim(dark, bright) == pytest.approx(expected)


def test_ssim_is_that_of_a_plain_loop_over_windows() -> None:
    generator = np.random.default_rng(0)
    clean, corrupted = generator.integers(0, 256, (2, 2, 3, 9, 10)).astype(float)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for one, other in zip(clean.reshape(-1, 9, 10), corrupted.reshape(-1, 9, 10), strict=True):
        for i in range(3):
            for j in range(4):
                x, y = one[i : i + 7, j : j + 7].ravel(), other[i : i + 7, j : j + 7].ravel()
                (var_x, covariance), (_, var_y) = np.cov(x, y)
                mean_x, mean_y = x.mean(), y.mean()
                luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
                values.append(luminance * (2 * covariance + c2) / (var_x + var_y + c2))
    ours = fidelity.ssim(torch.from_numpy(clean), torch.from_numpy(corrupted))
    assert ours == pytest.approx(np.mean(values), abs=1e-12)


def test_high_frequency_of_one_white_pixel_by_hand() -> None:
    image = torch.zeros(1, 3, 5, 5)
    image[:, :, 2, 2] = 255
    # Inside the border the Laplacian is -4 once, 1 four times and 0 four times: mean 0.
    assert fidelity.high_frequency(image) == pytest.approx((16 + 4) / 9)
    assert fidelity.high_frequency(image * torch.tensor([0.0, 1, 0]).reshape(3, 1, 1)) == (
        pytest.approx(0.587**2 * 20 / 9)
    )


def test_high_frequency_ratio_is_of_means_over_images_and_of_variances() -> None:
    clean = torch.zeros(2, 3, 5, 5)
    clean[:, :, 2, 2] = 100
    corrupted = clean.clone()
    corrupted[0] *= 2
    assert fidelity.high_frequency_ratio(clean, corrupted) == pytest.approx((4 + 1) / 2)


# Limits


def test_tolerances() -> None:
    assert fidelity.relative_tolerance("fog", "ssim") == 0.1
    assert fidelity.relative_tolerance("fog", "high_frequency") == 0.2
    assert fidelity.relative_tolerance("frost", "high_frequency") == 0.25
    assert fidelity.relative_tolerance("frost", "change") == 0.1


def test_allowance_for_one_draw_of_fewer_images() -> None:
    entry = {"fog": {"3": {"draws": 3, "std_between_draws": {"ssim": 0.01}}}}
    clean = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    reference = fidelity.Reference(clean, {}, entry, n_statistics=20)
    assert reference.allowance("fog", 3, "ssim") == pytest.approx(4.303 * 0.01 * 2)


# Whole folders


def test_our_own_outputs_pass(tmp_path: Path) -> None:
    table = fidelity.compare(fidelity.read(make_folder(tmp_path)))
    assert table["passed"].all()
    assert table["corruption"].tolist() == [name for name in NAMES for _ in range(5)]
    kinds = table.groupby("corruption")["kind"].first()
    assert kinds["brightness"] == "pixels"
    assert kinds["gaussian_noise"] == "statistics"
    pixels = table[table["kind"] == "pixels"]
    assert pixels["corruption"].unique().tolist() == ["brightness", "jpeg_compression"]
    assert (pixels["limit"] == 1).all()
    assert (pixels["pixel_difference"] == 0).all()
    assert (table["passed"] == (table["share"] <= 1)).all()


@pytest.mark.parametrize("name", ["brightness", "gaussian_noise"])
def test_a_shifted_reference_fails_and_is_named(name: str, tmp_path: Path) -> None:
    table = fidelity.compare(fidelity.read(make_folder(tmp_path, shift=name)))
    assert not table["passed"][table["corruption"] == name].any()
    assert f"{name} at {SIDE} px, severity 1, 2, 3, 4, 5" in fidelity.verdict(table)


def test_verdict_and_summary() -> None:
    table = pd.DataFrame(
        {
            "size": 32,
            "corruption": ["fog", "fog", "glass_blur"],
            "severity": [1, 2, 1],
            "pixel_difference": [0.5, 3.0, 0.1],
            "limit": [2.0, 2.0, 1.0],
            "passed": [True, False, False],
        }
    )
    assert fidelity.verdict(table) == (
        "1 of 3 pass; not: fog at 32 px, severity 2; glass_blur at 32 px, severity 1"
    )
    assert fidelity.verdict(table[:1]) == "1 of 1 pass"
    assert fidelity.summary(table)["pixels"].tolist() == [1.5, 0.1]


def test_table_and_provenance_are_written_without_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path)
    monkeypatch.setenv("ROBUSTLIB_RESULTS", str(tmp_path / "out"))
    monkeypatch.setattr(sys, "argv", ["fidelity", str(folder)])
    fidelity.main()
    table = pd.read_csv(tmp_path / "out" / "fidelity.csv")
    text = (tmp_path / "out" / "fidelity.json").read_text("utf-8")
    assert str(tmp_path) not in text
    facts = json.loads(text)
    assert facts["images"] == {str(SIDE): N}
    assert facts["seeds"] == {str(SIDE): 8}
    assert "packages" in facts
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert f" of {len(table)} pass" in last


# Folders that don't do


def spoil(folder: Path, how: str) -> None:
    archive, facts = folder / f"corruptions_{SIDE}.npz", folder / "corruption_stats.json"
    if how == "no archive":
        archive.unlink()
    elif how == "no statistics":
        facts.unlink()
    elif how == "statistics unreadable":
        facts.write_text("{")
    elif how == "archive unreadable":
        archive.write_text("nothing")
    elif how == "another side":
        facts.write_text(facts.read_text().replace(f'"{SIDE}"', '"8"'))
    elif how == "one draw":
        facts.write_text(facts.read_text().replace('"draws": 5', '"draws": 1'))
    else:
        with np.load(archive) as loaded:
            arrays = dict(loaded)
        if how == "corruption missing":
            del arrays["brightness"]
        else:
            arrays["brightness"] = arrays["brightness"][:4]
        np.savez(archive, **arrays)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no archive", "no corruptions_<px>.npz"),
        ("no statistics", "no corruption_stats.json"),
        ("statistics unreadable", "can't be read"),
        ("archive unreadable", "can't be read"),
        ("another side", f"lacks '{SIDE}'"),
        ("corruption missing", "brightness"),
        ("four severities", "must be uint8 of"),
        ("one draw", "2 to 9 draws"),
    ],
)
def test_a_bad_folder_is_refused(how: str, message: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    spoil(tmp_path, how)
    with pytest.raises(fidelity.BadReferenceError, match=message):
        fidelity.read(tmp_path)


def test_the_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fidelity", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        fidelity.main()
    assert "no corruptions_<px>.npz" in capsys.readouterr().err
