"""Adversarial against common robustness, and what training on chosen corruptions brings to others.

The claims of Laugros, Caplier and Ospici 2019 (arXiv 1909.02436), each as a test. An attack is a
perturbation as any other, so "independent" means an overlap of zero, and is tested as equivalence
(TOST), pair by pair. "Unseen" is measured too: an overlap below a limit with everything that was
trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from robustlib.analysis.atlas import STANDARD
from robustlib.analysis.crossed import (
    Estimate,
    MeanOfRatios,
    Ratio,
    accuracy_gains,
    crossed_estimate,
    jackknife,
)
from robustlib.analysis.hypotheses import LEVEL, ONE_SEED, Outcome, equivalence
from robustlib.analysis.metrics import accuracy_matrix
from robustlib.analysis.overlap import is_clear, normalised_gains, overlapping_scores
from robustlib.analysis.selection import choose
from robustlib.core.checks import (
    check_name,
    check_names,
    check_nonempty,
    check_number,
    check_seed,
    check_whole,
)
from robustlib.evaluation import Evaluation

LINKED, ANTAGONISTIC = "linked", "antagonistic"
INDEPENDENT, UNDECIDED = "independent", "undecided"
NO_SCORE = "no score"
CHOSEN, EVERY = "chosen", "all"


def joined(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of different models on the same images as one.

    Raises:
        ValueError: none, different numbers of images, or a model in two of them.
    """
    sizes = sorted({evaluation.correct.shape[1] for evaluation in evaluations})
    if len(sizes) != 1:
        raise ValueError(f"the evaluations must be on the same images, got {sizes} of them.")
    models = [model for each in evaluations for model in each.table["model"].unique()]
    check_nonempty(models, "the list of models of the evaluations")
    return Evaluation(
        pd.concat([each.table for each in evaluations], ignore_index=True),
        np.concatenate([each.correct for each in evaluations]),
        sum(each.computed for each in evaluations),
    )


# --- Adversarial against common robustness -------------------------------------------------------


@dataclass(frozen=True)
class Dependence:
    """What a recipe that trains with attacks gains on corruptions, and these on the attack.

    Attributes:
        recipe: its name.
        corruptions: C of them.
        gains: (C,), its accuracy under each minus that of the standard model.
        alone: the T corruptions that a recipe of the same name trains with; the others have no
            overlap.
        own: (T,), what training with each gains on itself.
        own_attack: (T,), what this recipe gains on the attack, T times the same.
        from_attack: (T,), the directed half: this recipe's gain on each corruption as a share of
            `own`.
        to_attack: (T,), the other half: the gain of training with each on the attack, as a share
            of `own_attack`.
        signed: (T,), the mean of both halves, before the clamp at 0.
    """

    recipe: str
    corruptions: tuple[str, ...]
    gains: Estimate
    alone: tuple[str, ...]
    own: Estimate
    own_attack: Estimate
    from_attack: Ratio
    to_attack: Ratio
    signed: MeanOfRatios

    @property
    def scored(self) -> np.ndarray:
        """bool (T,): whether both own gains are clear (`overlap.is_clear`), as a score needs."""
        return is_clear(self.own.interval()) & is_clear(self.own_attack.interval())

    def table(self, *, margin: float) -> pd.DataFrame:
        """One row a corruption, with verdicts.

        margin: the largest overlap, either sign, that counts as none; above 0.

        Returns the columns recipe; corruption; gain, gain_low and gain_high, in accuracy;
        own_gain, own_gain_attack, from_attack and to_attack, which are those of the attributes;
        overlap, low and high, of the signed overlap; p, of whichever of the statements below the
        estimate speaks for, and verdict:

            linked           the overlap is clearly above the margin (95 % interval)
            antagonistic     clearly below -margin
            independent      clearly within (two one-sided tests at 5 %)
            undecided        none of these
            no score         an own gain isn't clear, or nothing was trained with it

        p_holm and verdict_holm, the same with Holm's correction over all corruptions that were
        trained with; seeds; and n, the images. With one seed verdicts are `ONE_SEED`. Halves and
        overlaps without a score are NaN. Intervals cover seeds and images.

        Raises:
            ValueError: a margin that isn't positive.
        """
        from statsmodels.stats.multitest import multipletests  # type: ignore[import-untyped]

        gains, scored = self.gains.interval(), self.scored
        outcome = equivalence(self.signed, margin=margin)
        p = np.where(scored, outcome.p, 1)
        p_holm = multipletests(p, alpha=LEVEL, method="holm")[1]
        has_own = is_clear(self.own.interval())
        attack_has_own = is_clear(self.own_attack.interval())
        pairs = pd.DataFrame(
            {
                "own_gain": self.own.value,
                "own_gain_attack": self.own_attack.value,
                "from_attack": np.where(has_own, self.from_attack.value, np.nan),
                "to_attack": np.where(attack_has_own, self.to_attack.value, np.nan),
                "overlap": np.where(scored, outcome.value, np.nan),
                "low": np.where(scored, outcome.low, np.nan),
                "high": np.where(scored, outcome.high, np.nan),
                "p": np.where(scored, p, np.nan),
                "verdict": _verdicts(outcome, p, scored),
                "p_holm": np.where(scored, p_holm, np.nan),
                "verdict_holm": _verdicts(outcome, p_holm, scored),
            },
            index=list(self.alone),
        )
        ends = {"gain": gains.estimate, "gain_low": gains.low, "gain_high": gains.high}
        gained = pd.DataFrame({"recipe": self.recipe, "corruption": self.corruptions, **ends})
        table = gained.join(pairs, on="corruption").assign(seeds=gains.seeds, n=gains.images)
        return table.fillna({"verdict": NO_SCORE, "verdict_holm": NO_SCORE})

    def mean_overlap(self, corruptions: Sequence[str]) -> Estimate:
        """The mean signed overlap with those of some corruptions that have a score.

        The overlaps are taken as linear near their values, which the guard of the score allows.

        Raises:
            ValueError: none of them has a score.
        """
        named = np.array([name in corruptions for name in self.alone])
        places = np.flatnonzero(named & self.scored)
        check_nonempty(places.tolist(), "the list of corruptions with a score")
        halves = [half.linear()[places] for half in (self.from_attack, self.to_attack)]
        return Estimate(
            np.mean([half.value for half in halves]),
            np.mean([half.cells for half in halves], axis=(0, 1)),
            self.signed.images,
        )


def dependences(
    evaluation: Evaluation,
    recipes: Sequence[str],
    corruptions: Sequence[str],
    *,
    attack: str = "adversarial",
    normalise: str = "ratio",
) -> list[Dependence]:
    """How each of some recipes that train with attacks depends on each of some corruptions.

    Args:
        evaluation: of the recipe "standard" and of `recipes` on clean images, `corruptions` and
            the attack; and of recipes of the corruptions' names, of those that were trained with
            alone, on clean images, that corruption and the attack. All with the same seeds.
        recipes: their names.
        corruptions: their names.
        attack: label of the attack that all are tested with.
        normalise: as in `overlap.overlapping_scores`; gains in accuracy aren't normalised.

    Raises:
        ValueError: nothing named or something twice, a pair that wasn't evaluated, recipes of
            different seeds, or no corruption that a recipe trains with.
        UnknownNameError: unknown normalisation.
    """
    check_name(normalise, ("ratio", "raw"), "normalisation")
    check_nonempty(recipes, "the list of recipes")
    check_nonempty(corruptions, "the list of corruptions")
    known = set(evaluation.table["recipe"])
    alone = [name for name in corruptions if name in known]
    if not alone:
        raise ValueError(
            "an overlap needs a recipe that trains with a corruption alone, of its name; found the "
            f"recipes {', '.join(sorted(known))}."
        )
    places = [2 + list(corruptions).index(name) for name in alone]
    by_corruption = [
        evaluation.per_seed([STANDARD, name], ["clean", attack, name])[:, 1:] for name in alone
    ]
    found = []
    for recipe in recipes:
        correct = evaluation.per_seed([STANDARD, recipe], ["clean", attack, *corruptions])
        pairs = [
            np.concatenate([correct[:, :, [0, 1, place]], single], axis=1)
            for place, single in zip(places, by_corruption, strict=True)
        ]  # seeds, (standard, recipe, single), (clean, attack, corruption), n
        gains = jackknife(
            lambda accuracy: normalised_gains(accuracy, normalise), np.stack(pairs, axis=1)
        )
        own_attack, own = gains[:, 0, 0], gains[:, 1, 1]
        from_attack, to_attack = Ratio(gains[:, 0, 1], own), Ratio(gains[:, 1, 0], own_attack)
        found.append(
            Dependence(
                recipe,
                tuple(corruptions),
                accuracy_gains(correct[:, :, 2:])[0],
                tuple(alone),
                own,
                own_attack,
                from_attack,
                to_attack,
                MeanOfRatios(from_attack, to_attack),
            )
        )
    return found


def _verdicts(outcome: Outcome, p: np.ndarray, scored: np.ndarray) -> np.ndarray:
    side = np.where(outcome.value > 0, LINKED, ANTAGONISTIC)
    words = {"supported": INDEPENDENT, "undecided": UNDECIDED, ONE_SEED: ONE_SEED}
    said = [
        words.get(found, where)
        for found, where in zip(outcome.verdict(p).tolist(), side.tolist(), strict=True)
    ]
    return np.where(scored, np.array(said, dtype=object), NO_SCORE)


# --- Training on chosen corruptions ---------------------------------------------------------------


def overlaps_without(record: Evaluation, seed: int, corruptions: Sequence[str]) -> pd.DataFrame:
    """Overlapping scores of some corruptions from all training seeds but one.

    So what is chosen by them for models of that seed owes nothing to these models. A choice claims
    nothing, so a corruption has a score here if its own gain exceeds `overlap.MIN_GAIN`; that an
    interval of one or two seeds lies above zero would be too much to ask.

    Args:
        record: per-image results of an atlas, as for `atlas.atlas`.
        seed: the training seed to leave out; it needn't be there.
        corruptions: names; those that aren't in the record have no score.

    Returns a symmetric frame of those with a score.

    Raises:
        ValueError: no other seed, none of the corruptions was trained with, or not each model of
            these was tested on each of them.
    """
    seed, table = check_seed(seed), record.table
    others = table[table["training_seed"] != seed]
    if others.empty:
        raise ValueError(
            f"the atlas has results of training seed {seed} only, which is the one to be tested: "
            "choose other 'seeds', or an 'atlas_run' with two seeds or more."
        )
    known = [name for name in corruptions if name in set(others["recipe"])]
    check_nonempty(known, "the list of corruptions that the atlas has")
    recipes, perturbations = [STANDARD, *known], ["clean", *known]
    kept = others["recipe"].isin(recipes) & others["perturbation"].isin(perturbations)
    accuracy = accuracy_matrix(others[kept]).reindex(index=recipes, columns=perturbations)
    scores = overlapping_scores(accuracy)
    scored = scores.index[np.diag(scores) == 1]
    return scores.loc[scored, scored]


def training_sets(
    overlaps: Mapping[int, pd.DataFrame],
    candidates: Sequence[str],
    *,
    size: int,
    random_sets: int,
    limit: float,
    seed: int = 0,
) -> pd.DataFrame:
    """Sets of corruptions to train with: chosen, random, and all.

    The chosen set covers the candidates best (`selection.choose`), for each training seed by
    overlaps of its own; candidates without a score are left out of that choice, since training with
    them doesn't clearly help against themselves. Random sets are the same for all training seeds,
    of any candidates, no two alike.

    Args:
        overlaps: by training seed, as from `overlaps_without`.
        candidates: names.
        size: of the chosen and the random sets, from 1 to one less than the candidates.
        random_sets: how many, 1 or more.
        limit: the largest overlap that two members of the chosen set may have.
        seed: of the random sets.

    Returns one row for each member of each set: set ("chosen", "random 1", ..., "all"),
    training_seed, corruption; members in the order of the candidates.

    Raises:
        ValueError: arguments out of range, fewer sets than random ones, fewer candidates with a
            score than the size, or no choice within the limit.
    """
    check_nonempty(candidates, "the list of candidates")
    size = check_whole(size, "the size of a set", low=1, high=len(candidates) - 1)
    most = math.comb(len(candidates), size)
    random_sets = check_whole(random_sets, "the number of random sets", low=1, high=most)
    rng = np.random.default_rng(check_seed(seed))
    drawn: dict[tuple[str, ...], None] = {}
    while len(drawn) < random_sets:
        picked = np.sort(rng.choice(len(candidates), size, replace=False))
        drawn[tuple(candidates[place] for place in picked.tolist())] = None
    rows = []
    for training_seed, overlap in overlaps.items():
        scored = [name for name in candidates if name in overlap.index]
        if len(scored) < size:
            raise ValueError(
                f"{len(scored)} of {len(candidates)} candidates have an overlapping score without "
                f"training seed {training_seed}, too few to choose {size}: choose fewer, or other "
                "candidates."
            )
        sets = {CHOSEN: tuple(choose(overlap.loc[scored, scored], size, limit))}
        sets |= {f"random {number}": names for number, names in enumerate(drawn, 1)}
        sets[EVERY] = tuple(candidates)
        rows += [
            {"set": name, "training_seed": training_seed, "corruption": member}
            for name, members in sets.items()
            for member in members
        ]
    return pd.DataFrame(rows)


def unlike(
    overlap: pd.DataFrame, members: Sequence[str], tested: Sequence[str], *, limit: float
) -> list[str]:
    """Those of some corruptions that overlap by less than a limit with every member of a set.

    Args:
        overlap: as from `overlaps_without`.
        members: what is trained with. One without a score leaves nothing, for nothing is known to
            be unlike it.
        tested: names. One without a score is left out: it isn't known to be unlike anything.
        limit: above 0.
    """
    limit = check_number(limit, "limit", low=0, above=True)
    if not set(members) <= set(overlap.index):
        return []
    scored = [name for name in tested if name in overlap.index]
    return [name for name in scored if (overlap.loc[list(members), name] < limit).all()]


def mean_gain(
    evaluation: Evaluation, recipe: str, references: Mapping[str, Mapping[int, Sequence[str]]]
) -> Estimate:
    """Accuracy that a recipe gains over others on the same images, averaged over corruptions.

    Args:
        evaluation: of all of them.
        recipe: its name.
        references: for the name of each recipe to compare with, one or more, the corruptions that
            count by training seed. The gains over several are averaged.

    Returns a single estimate, whose interval covers the seeds and images.

    Raises:
        ValueError: no reference, references of different seeds, a seed without corruptions, or a
            pair that wasn't evaluated.
    """
    seeds = sorted({seed for by_seed in references.values() for seed in by_seed})
    for name, by_seed in references.items():
        if sorted(by_seed) != seeds or not all(map(len, by_seed.values())):
            raise ValueError(
                f"{name!r} needs corruptions to be compared on for each of the training seeds "
                f"{seeds}, got {dict(by_seed)}."
            )
    check_names(list(references), evaluation.table["recipe"].unique(), "recipe")
    per_seed = []
    for seed in seeds:
        part = evaluation.where(evaluation.table["training_seed"] == seed)
        gained = [
            np.diff(part.per_seed([name, recipe], list(by_seed[seed]))[0].astype(float), axis=0)
            for name, by_seed in references.items()
        ]  # (1, corruptions, n) each
        per_seed.append(np.mean([each[0].mean(axis=0) for each in gained], axis=0))
    return crossed_estimate(np.array(per_seed))
