"""The verdicts of the run of record, recomputed from its per-image results by code of their own.

Nothing here calls the project's analysis: files are read by safetensors, jackknives leave out by
leaving out, and interval ends and p values are found by searching for them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from scipy import special, stats
from scipy.optimize import brentq

RESULTS = Path(__file__).parents[1] / "results"
RECORD = RESULTS / "cifar10"
BLOCKS = 50
LEVEL = 0.05
FIVE = ["fgsm", "pgd", "pgd_least_likely", "mi_fgsm", "cw"]
FIFTEEN = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
]
NINETEEN = [*FIFTEEN, "speckle_noise", "gaussian_blur", "spatter", "saturate"]


# --- Files ---------------------------------------------------------------------------------------


def table(name: str, run: str = "cifar10") -> pd.DataFrame:
    return pd.read_csv(RESULTS / run / f"{name}.csv", keep_default_na=False, na_values=[""])


@cache
def bits(name: str, run: str = "cifar10") -> tuple[pd.DataFrame, np.ndarray]:
    """Rows, and whether each image is classified rightly in each."""
    with safe_open(RESULTS / run / f"{name}.safetensors", "numpy") as file:
        texts, packed = file.metadata(), file.get_tensor("correct")
    rows = pd.read_csv(io.StringIO(texts["table"]))
    return rows, np.unpackbits(packed, axis=1, count=int(texts["n"])).astype(bool)


@cache
def right(name: str, recipe: str, perturbation: str, run: str = "cifar10") -> np.ndarray:
    """(seeds, images), the share of severities at which an image is classified rightly."""
    rows, correct = bits(name, run)
    mine = rows[(rows["recipe"] == recipe) & (rows["perturbation"] == perturbation)]
    by_seed = mine.groupby("training_seed").indices
    assert len(by_seed) >= 2
    return np.array([correct[mine.index[by_seed[seed]]].mean(axis=0) for seed in sorted(by_seed)])


def has(name: str, recipe: str) -> bool:
    return recipe in set(bits(name)[0]["recipe"])


# --- Intervals over seeds and images -------------------------------------------------------------


def half_width(cells: np.ndarray, tail: float) -> float:
    """Of the interval of the mean of (seeds, images or blocks) (Zou and Donner 2008)."""
    seeds, images = cells.shape
    of_seeds = cells.mean(axis=1).var(ddof=1) / seeds
    of_images = cells.mean(axis=0).var(ddof=1) / images
    left = cells - cells.mean(axis=1, keepdims=True) - cells.mean(axis=0) + cells.mean()
    of_both = (left**2).sum() / ((seeds - 1) * (images - 1)) / (seeds * images)
    t_seeds, t_images = (special.stdtrit(count - 1, tail) for count in (seeds, images))
    both = t_seeds**2 * of_seeds + t_images**2 * (of_images - of_both)
    return float(np.sqrt(max(both, t_seeds**2 * of_seeds, t_images**2 * of_images)))


def level(clear: Callable[[float], bool]) -> float:
    """The smallest one-sided tail at which something is still clear, by halving."""
    least, most = 0.0, 20.0
    for _ in range(30):
        middle = (least + most) / 2
        least, most = (middle, most) if clear(special.ndtr(-middle)) else (least, middle)
    return float(special.ndtr(-least))


class Mean:
    """An estimate with cells (seeds, images or blocks) whose mean it nearly is."""

    def __init__(self, value: float, cells: np.ndarray) -> None:
        self.value, self.cells = float(value), cells

    def ends(self, tail: float) -> tuple[float, float]:
        half = half_width(self.cells, tail)
        return self.value - half, self.value + half


class Ratio:
    """Fieller's: r is inside where numerator - r denominator may be zero."""

    def __init__(self, above: Mean, below: Mean) -> None:
        self.above, self.below = above, below
        self.value = above.value / below.value
        slope = 1 / below.value
        cells = self.value + slope * (above.cells - self.value * below.cells)
        self.linear = Mean(self.value, cells)

    def _outside(self, r: float, tail: float) -> float:
        distance = abs(self.above.value - r * self.below.value)
        return distance - half_width(self.above.cells - r * self.below.cells, tail)

    def ends(self, tail: float) -> tuple[float, float]:
        if abs(self.below.value) <= half_width(self.below.cells, tail):
            return -np.inf, np.inf
        return self._end(tail, -1), self._end(tail, 1)

    def _end(self, tail: float, side: int) -> float:
        step = 1e-3
        while self._outside(self.value + side * step, tail) <= 0:
            step *= 2
        return brentq(self._outside, self.value, self.value + side * step, (tail,), xtol=1e-10)


class MeanOfTwo:
    def __init__(self, one: Ratio, two: Ratio) -> None:
        self.one, self.two = one, two
        self.value = (one.value + two.value) / 2

    def ends(self, tail: float) -> tuple[float, float]:
        a, b = self.one.linear.cells, self.two.linear.cells
        first, second, both = (half_width(cells, tail) for cells in (a, b, a + b))
        r = np.clip((both**2 - first**2 - second**2) / (2 * first * second), -1, 1)
        ends = []
        for side, x, y in zip((-1, 1), self.one.ends(tail), self.two.ends(tail), strict=True):
            x, y = x - self.one.value, y - self.two.value
            if np.isfinite(x) and np.isfinite(y):
                ends.append(self.value + side * np.sqrt(max(x**2 + y**2 + 2 * r * x * y, 0)) / 2)
            else:
                ends.append(side * np.inf)
        return ends[0], ends[1]


Found = Mean | MeanOfTwo


def p_above(found: Found, threshold: float) -> float:
    """One-sided p value of "the truth is at most the threshold"."""
    if found.value <= threshold:
        return 1 - level(lambda tail: found.ends(tail)[1] < threshold)
    return level(lambda tail: found.ends(tail)[0] > threshold)


def p_below(found: Found, threshold: float) -> float:
    if found.value >= threshold:
        return 1 - level(lambda tail: found.ends(tail)[0] > threshold)
    return level(lambda tail: found.ends(tail)[1] < threshold)


def p_beyond(found: Found, threshold: float) -> float:
    return min(1.0, 2 * min(p_above(found, threshold), p_below(found, threshold)))


def p_equivalent(found: Found, margin: float) -> float:
    if abs(found.value) < margin:
        return max(p_above(found, -margin), p_below(found, margin))
    return min(1.0, 2 * min(p_above(found, margin), p_below(found, -margin)))


def holm(p: Sequence[float]) -> np.ndarray:
    adjusted, running = np.empty(len(p)), 0.0
    for place, index in enumerate(np.argsort(p)):
        running = max(running, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = running
    return adjusted


def mean_of(cells: np.ndarray) -> Mean:
    return Mean(cells.mean(), cells)


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> list[Mean]:
    """Of a statistic (numbers,) of accuracies (k,), from right answers (seeds, k, images)."""
    seeds, _, images = values.shape
    order = np.random.default_rng(0).permutation(images)
    block = np.empty(images, dtype=int)
    block[order] = np.arange(images) % (images // -(-images // BLOCKS))
    assert images > BLOCKS
    blocks = block.max() + 1
    sums = np.stack([values[:, :, block == b].sum(axis=2) for b in range(blocks)], axis=1)
    sizes = np.bincount(block)

    def without(seed: int | None, left_out: int | None) -> np.ndarray:
        kept_seeds = [s for s in range(seeds) if s != seed]
        kept = [b for b in range(blocks) if b != left_out]
        total = sums[np.ix_(kept_seeds, kept)].sum(axis=(0, 1))
        return statistic(total / (len(kept_seeds) * sizes[kept].sum()))

    whole = without(None, None)
    cells = np.empty((len(whole), seeds, blocks))
    no_seed = [without(seed, None) for seed in range(seeds)]
    for b in range(blocks):
        no_block, weight = without(None, b), images / sizes[b]
        for seed in range(seeds):
            full = seeds * whole - (seeds - 1) * no_seed[seed]
            part = seeds * no_block - (seeds - 1) * without(seed, b)
            cells[:, seed, b] = weight * full - (weight - 1) * part
    return [Mean(value, some) for value, some in zip(whole, cells, strict=True)]


# --- Comparison with the tables ------------------------------------------------------------------


def check_claim(row: pd.Series, found: Found, p: float) -> None:
    assert found.value == pytest.approx(row["value"], abs=2e-6)
    low, high = found.ends(LEVEL / 2)
    assert [low, high] == pytest.approx([row["low"], row["high"]], abs=2e-5)
    assert p == pytest.approx(row["p"], rel=1e-3, abs=1e-6)


def check_verdicts(claims: pd.DataFrame, holds: Sequence[bool]) -> None:
    """Each verdict follows from the p values of all, by Holm."""
    adjusted = holm(claims["p"].fillna(1).tolist())
    for row, p, claimed in zip(claims.itertuples(), adjusted, holds, strict=True):
        decided = "supported" if claimed else "contradicted"
        assert row.verdict == (decided if p < LEVEL else "undecided"), row.statement


# --- Adversarial and common robustness -----------------------------------------------------------


def dependence(recipe: str, corruption: str) -> tuple[Mean, Mean, MeanOfTwo]:
    """Own gains of the corruption and of the attack, and the signed overlap of both."""
    models, tests = ("standard", recipe, corruption), ("clean", "adversarial", corruption)
    values = np.stack(
        [right("independence", model, test) for model in models for test in tests], axis=1
    )

    def gains(accuracy: np.ndarray) -> np.ndarray:
        clean, attacked, corrupted = accuracy.reshape(3, 3).T
        on_attack, on_corruption = attacked / clean, corrupted / clean
        of_attack = on_attack[1:] - on_attack[0]
        of_corruption = on_corruption[1:] - on_corruption[0]
        return np.concatenate([of_attack, of_corruption])

    own_attack, to_attack, from_attack, own = jackknife(gains, values)
    overlap = MeanOfTwo(Ratio(from_attack, own), Ratio(to_attack, own_attack))
    return own, own_attack, overlap


def has_score(own: Mean) -> bool:
    return own.value > 0.01 and own.ends(LEVEL / 2)[0] > 0


def in_words(overlap: MeanOfTwo, low: float, high: float, margin: float) -> str:
    """The verdict, from the 95 % interval and, for independence, the 90 % one."""
    if low > margin:
        return "linked"
    if high < -margin:
        return "antagonistic"
    low, high = overlap.ends(LEVEL)
    return "independent" if -margin < low and high < margin else "undecided"


MARGIN = 0.1


@pytest.fixture(scope="module")
def dependences() -> dict[tuple[str, str], tuple[Mean, Mean, MeanOfTwo]]:
    pairs = table("adversarial_overlap")
    return {
        (recipe, corruption): dependence(recipe, corruption)
        for recipe, corruption in zip(pairs["recipe"], pairs["corruption"], strict=True)
        if has("independence", corruption)
    }


@pytest.mark.slow
def test_every_pair_of_attack_and_corruption(dependences: dict) -> None:
    pairs = table("adversarial_overlap")
    assert pairs["corruption"].nunique() == 42
    assert pairs["recipe"].nunique() == 10
    for row in pairs.itertuples():
        gained = mean_of(
            right("independence", row.recipe, row.corruption)
            - right("independence", "standard", row.corruption)
        )
        assert gained.value == pytest.approx(row.gain, abs=2e-6)
        own, own_attack, overlap = dependences[row.recipe, row.corruption]
        if has_score(own) and has_score(own_attack):
            ends = overlap.ends(LEVEL / 2)
            found = [overlap.value, *ends]
            assert found == pytest.approx([row.overlap, row.low, row.high], rel=1e-4, abs=1e-4)
            assert row.verdict == in_words(overlap, *ends, MARGIN), (row.recipe, row.corruption)
        else:
            assert row.verdict == row.verdict_holm == "no score"
    for _, part in pairs.groupby("recipe"):
        adjusted = holm(part["p"].fillna(1).tolist())
        for row, p in zip(part.itertuples(), adjusted, strict=True):
            if row.verdict_holm != "no score":
                assert row.verdict_holm == (row.verdict if p < LEVEL else "undecided")


def overlaps_without(seed: int) -> pd.DataFrame:
    """Overlaps from the seeds of the atlas but one, of what has an own gain above a point."""
    rows, _ = bits("overlap")
    seeds = sorted(set(rows["training_seed"]))
    kept = [place for place, each in enumerate(seeds) if each != seed]
    names = [name for name in rows["recipe"].unique() if name not in ("standard", "adversarial")]

    def score(recipe: str, perturbation: str) -> float:
        hit, clean = (
            right("overlap", recipe, each)[kept].mean() for each in (perturbation, "clean")
        )
        return float(hit / clean)

    gains = pd.DataFrame(
        {c: {m: score(m, c) - score("standard", c) for m in names} for c in names}
    ).loc[names, names]
    own = pd.Series(np.diag(gains), names)
    scored = own.index[own > 0.01]
    shares = gains.div(own, axis=1).loc[scored, scored]
    return ((shares + shares.T) / 2).clip(lower=0)


def gains_of_set(name: str, reference: str, counted: dict[int, list[str]]) -> np.ndarray:
    """(seeds, images)."""
    return np.array(
        [
            np.mean(
                [
                    right("independence", name, c)[place]
                    - right("independence", reference, c)[place]
                    for c in counted[seed]
                ],
                axis=0,
            )
            for place, seed in enumerate(sorted(counted))
        ]
    )


@pytest.mark.slow
def test_every_verdict_on_independence(dependences: dict) -> None:
    claims, sets = table("claims_independence"), table("chosen_sets")
    rows, _ = bits("independence")
    seeds = sorted(set(rows["training_seed"]))
    overlaps = {seed: overlaps_without(seed) for seed in seeds}
    members = sets.groupby(["set", "training_seed"])["corruption"].agg(list)
    tested = [
        name
        for name in rows.loc[rows["recipe"] == "chosen", "perturbation"].unique()
        if name != "clean"
    ]

    def unlike(name: str, seed: int) -> list[str]:
        overlap, inside = overlaps[seed], members[name, seed]
        if not set(inside) <= set(overlap.index):
            return []
        near = overlap.loc[inside].max()
        return [c for c in tested if c in near.index and near[c] < 0.5]

    chosen = {seed: unlike("chosen", seed) for seed in seeds}
    both = {
        name: {seed: [c for c in chosen[seed] if c in unlike(name, seed)] for seed in seeds}
        for name in sets["set"].unique()
        if name.startswith("random")
    }
    rivals = {name: counted for name, counted in both.items() if all(counted.values())}
    found: list[Mean] = [mean_of(gains_of_set("chosen", "standard", dict.fromkeys(seeds, tested)))]
    if all(chosen.values()):
        found.append(mean_of(gains_of_set("chosen", "standard", chosen)))
    if rivals:
        over = [gains_of_set("chosen", name, counted) for name, counted in rivals.items()]
        found.append(mean_of(np.mean(over, axis=0)))
    tests = ["superiority"] * len(found)

    pairs = table("adversarial_overlap")
    near = pairs[pairs["method"] == "pgd"]
    recipe = near.loc[(near["radius"] - 2).abs().idxmin(), "recipe"]
    near = near[near["recipe"] == recipe]
    families = near.drop_duplicates("family")["family"]
    for family in families:
        halves = []
        for corruption in near.loc[near["family"] == family, "corruption"]:
            own, own_attack, overlap = dependences[recipe, corruption]
            if has_score(own) and has_score(own_attack):
                halves += [overlap.one.linear, overlap.two.linear]
        if halves:
            value = np.mean([half.value for half in halves])
            found.append(Mean(value, np.mean([half.cells for half in halves], axis=0)))
            tests.append("equivalence")
    assert claims["test"].tolist() == tests
    holds = []
    for (_, row), each in zip(claims.iterrows(), found, strict=True):
        if row["test"] == "superiority":
            check_claim(row, each, p_beyond(each, 0.0))
            holds.append(each.value > 0)
        else:
            assert (row["above"], row["below"]) == (-MARGIN, MARGIN)
            check_claim(row, each, p_equivalent(each, MARGIN))
            holds.append(abs(each.value) < MARGIN)
    check_verdicts(claims, holds)


# --- M-TLAT --------------------------------------------------------------------------------------


GROUPS = {
    "clean images": ("mtlat", ["clean"]),
    "nineteen corruptions": ("mtlat", NINETEEN),
    "five attacks": ("mtlat_attacks", FIVE),
}


def level_of(recipe: str, comparison: str, name: str, perturbations: Sequence[str]) -> np.ndarray:
    """(seeds, images), right answers of the recipe as trained for the comparison."""
    twin = f"{recipe}, {comparison}"
    evaluated = twin if has(name, twin) else recipe
    return np.mean([right(name, evaluated, each) for each in perturbations], axis=0)


def gain(recipe: str, comparison: str, group: str, over: str = "standard") -> np.ndarray:
    mine, theirs = (level_of(each, comparison, *GROUPS[group]) for each in (recipe, over))
    return mine - theirs


def check_ends(cells: np.ndarray, expected: Sequence[float]) -> None:
    """Mean and 95 % interval of (seeds, images)."""
    found = mean_of(cells)
    assert [found.value, *found.ends(LEVEL / 2)] == pytest.approx(expected, abs=2e-5)


def test_every_verdict_on_m_tlat() -> None:
    claims = table("claims_mtlat")
    readings = (("M-TLAT (weight = radius)", "mtlat"), ("M-TLAT (own weight)", "mtlat_weight"))
    expected = product(("equal steps", "equal compute"), readings, GROUPS)
    holds = []
    for (_, row), (comparison, (words, recipe), group) in zip(
        claims.iterrows(), expected, strict=True
    ):
        assert row["statement"].startswith(words)
        assert row["statement"].endswith(group)
        assert row["measure"].endswith(comparison)
        found = mean_of(gain(recipe, comparison, group))
        margin = 0.01 if group == "clean images" else 0.0
        assert row["above"] == -margin
        check_claim(row, found, p_beyond(found, -margin))
        holds.append(found.value > -margin)
    check_verdicts(claims, holds)


def test_what_each_part_of_m_tlat_gains() -> None:
    gains, levels, over = (table(f"mtlat_{name}") for name in ("gains", "levels", "over"))
    for row in gains.itertuples():
        cells = gain(row.recipe, row.comparison, row.group)
        check_ends(cells, [row.gain, row.low, row.high])
    for row in levels.itertuples():
        cells = level_of(row.recipe, row.comparison, *GROUPS[row.group])
        check_ends(cells, [row.accuracy, row.low, row.high])
    for row in over.itertuples():
        cells = gain("mtlat", row.comparison, row.group, over=row.over)
        check_ends(cells, [row.gain, row.low, row.high])
    recipes = set(levels["recipe"])
    assert len(recipes) == 11
    assert len(levels) == 2 * len(GROUPS) * 11
    assert len(gains) == len(over) == 2 * len(GROUPS) * 10
    assert set(over["over"]) == recipes - {"mtlat"}


def test_gains_under_each_perturbation() -> None:
    rows = table("mtlat_by_perturbation")
    for row in rows.itertuples():
        name = "mtlat" if row.perturbation in ["clean", *NINETEEN] else "mtlat_attacks"
        mine, theirs = (
            level_of(recipe, row.comparison, name, [row.perturbation])
            for recipe in (row.recipe, "standard")
        )
        check_ends(mine - theirs, [row.gain, row.low, row.high])
    assert set(rows["perturbation"]) == {"clean", *NINETEEN, *FIVE, "ddn", "strong"}


def test_mean_corruption_errors() -> None:
    for row in table("mtlat_mce").itertuples():
        errors = [
            [1 - level_of(recipe, row.comparison, "mtlat", [c]).mean() for c in NINETEEN]
            for recipe in (row.recipe, "standard")
        ]
        assert 100 * np.mean(np.divide(*errors)) == pytest.approx(row.mce, abs=1e-3)


def test_cells_of_attacks_are_known_within_three_points() -> None:
    rows = table("mtlat_intervals")
    attacked = rows[rows["perturbation"].isin([*FIVE, "ddn", "strong"])]
    halves = (attacked["high"] - attacked["low"]) / 2
    assert (attacked["n"] >= 1500).all()
    assert halves.median() < 0.03


# --- Overlap -------------------------------------------------------------------------------------


def accuracy_of_fifteen(run: str) -> np.ndarray:
    """(seeds, models x tests, images): standard and the fifteen on clean images and the fifteen."""
    return np.stack(
        [
            right("overlap", model, test, run)
            for model in ("standard", *FIFTEEN)
            for test in ("clean", *FIFTEEN)
        ],
        axis=1,
    )


def gains_of_fifteen(accuracy: np.ndarray) -> np.ndarray:
    """Score of each model of the fifteen on each test, less that of the standard one, flat."""
    matrix = accuracy.reshape(1 + len(FIFTEEN), 1 + len(FIFTEEN))
    score = matrix[:, 1:] / matrix[:, :1]
    return (score[1:] - score[0]).ravel()


@cache
def overlaps_of_fifteen(run: str) -> dict[tuple[int, int], MeanOfTwo]:
    """The overlap of each pair of the fifteen that have a score, by their places."""
    size = len(FIFTEEN)
    found = jackknife(gains_of_fifteen, accuracy_of_fifteen(run))
    own = [found[i * size + i] for i in range(size)]
    scored = [i for i in range(size) if has_score(own[i])]
    return {
        (i, j): MeanOfTwo(Ratio(found[i * size + j], own[j]), Ratio(found[j * size + i], own[i]))
        for i, j in combinations(scored, 2)
    }


@pytest.mark.slow
@pytest.mark.parametrize("run", ["cifar10", "small_vgg"])
def test_every_verdict_on_overlap(run: str) -> None:
    claims = table("claims_overlap", run)
    pairs = overlaps_of_fifteen(run)
    scored = sorted({place for pair in pairs for place in pair})
    largest, redundant = (row for _, row in claims.iterrows())
    tail = LEVEL / 2 / len(pairs)
    ends = np.array([pair.ends(tail) for pair in pairs.values()])
    shown = [largest["value"], largest["low"]]
    assert shown == pytest.approx(
        [max(p.value for p in pairs.values()), ends[:, 0].max()], abs=1e-4
    )
    p = min(p_above(pair, 0.5) for pair in pairs.values())
    assert min(1.0, 2 * len(pairs) * p) == pytest.approx(largest["p"], rel=1e-3)

    clear = {pair for pair, overlap in pairs.items() if overlap.ends(LEVEL / 2)[0] > 0}

    def redundancy(accuracy: np.ndarray) -> np.ndarray:
        matrix = gains_of_fifteen(accuracy).reshape(len(FIFTEEN), len(FIFTEEN))
        similar = np.eye(len(scored))
        for a, i in enumerate(scored):
            for b, j in enumerate(scored):
                if (i, j) in clear or (j, i) in clear:
                    halves = matrix[i, j] / matrix[j, j] + matrix[j, i] / matrix[i, i]
                    similar[a, b] = np.clip(halves / 2, 0, 1)
        ordinary = similar.mean(axis=1)  # of each corruption, with the same weight for all
        return np.array([1 - np.exp(-np.log(ordinary).mean()) / len(scored)])

    (share,) = jackknife(redundancy, accuracy_of_fifteen(run))
    check_claim(redundant, share, p_beyond(share, 0.5))
    check_verdicts(claims, [largest["value"] > 0.5, share.value > 0.5])


@pytest.mark.slow
def test_agreement_of_two_architectures() -> None:
    ours, others = (overlaps_of_fifteen(run) for run in ("cifar10", "small_vgg"))
    assert ours.keys() == others.keys()
    values = [[max(0, pair.value) for pair in found.values()] for found in (ours, others)]
    shown = table("overlap_agreement", "small_vgg").set_index("of").loc["cifar10 and small_vgg"]
    assert stats.spearmanr(*values).statistic == pytest.approx(shown["spearman"], abs=1e-6)
    assert len({place for pair in ours for place in pair}) == shown["names"]


def test_the_committed_bits_are_small() -> None:
    assert sum(path.stat().st_size for path in RECORD.glob("*.safetensors")) <= 16e6
