"""Evaluation of models under perturbations into one long table, with per-image correctness."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from robustlib import attacks
from robustlib.core.checks import check_nonempty, check_number, check_seed, check_whole
from robustlib.core.identity import fingerprint
from robustlib.core.inference import device_of, evaluating, look_over
from robustlib.core.jobs import Workers
from robustlib.core.store import Store
from robustlib.data import Split, StreamedSplit
from robustlib.evaluation import jobs
from robustlib.evaluation.jobs import Cell, compute, place_of
from robustlib.exchange import Stored
from robustlib.models import Classifier
from robustlib.perturbations import Attack, Clean, Perturbation

COLUMNS = (
    "model",
    "recipe",
    "architecture",
    "training_seed",
    "perturbation",
    "family",
    "severity",
    "eps",
    "accuracy",
    "n",
    "norm",
    "options",
)
DETAILS = ("clean_correct", "robust_correct", "norm", "steps")


def check_comparable(table: pd.DataFrame) -> None:
    """Raise `ValueError` unless rows of one perturbation differ in model and severity only.

    An average over severities and training seeds is one of like with like only if each
    perturbation stands for one thing (one attack at one radius, computed or from files), once at
    each severity for each model, at the same severities and on as many images for all models; and
    if the models of a recipe have one architecture and saw the same perturbations. table: with the
    columns `COLUMNS`.
    """
    told_apart = [column for column in ("eps", "norm", "options") if column in table]
    for name, rows in table.groupby("perturbation", sort=False):
        kinds = {
            ", ".join(f"{c} {_in_words(v)}" for c, v in zip(told_apart, row, strict=True) if v == v)
            for row in rows[told_apart].replace("", np.nan).itertuples(index=False)
        }
        if len(kinds) > 1:
            raise ValueError(
                f"{name!r} stands for {len(kinds)} different perturbations "
                f"({'; '.join(sorted(kinds))}); give each a label of its own, such as "
                "Attack(..., label='pgd 2/255'), or average one at a time."
            )
        by_model = rows.groupby(["recipe", "training_seed"], sort=False)
        severities = {model: sorted(part["severity"]) for model, part in by_model}
        first = next(iter(severities.values()))
        if len(set(first)) < len(first):
            raise ValueError(
                f"{name!r} stands more than once in the table for one model and severity; was it "
                "joined from two evaluations? Drop the rows that repeat."
            )
        unlike = {model: found for model, found in severities.items() if found != first}
        if unlike:
            (recipe, seed), found = next(iter(unlike.items()))
            raise ValueError(
                f"{name!r} was not tested at the same severities: {found} for {recipe!r}, seed "
                f"{seed}, but {first} for others. Evaluate all models at the same ones."
            )
        if "n" in rows and rows["n"].nunique() > 1:
            raise ValueError(
                f"{name!r} was tested on different numbers of images, "
                f"{sorted(set(rows['n']))}; evaluate all models on the same ones."
            )
    for recipe, rows in table.groupby("recipe", sort=False):
        if "architecture" in rows and rows["architecture"].nunique() > 1:
            raise ValueError(
                f"recipe {recipe!r} stands for models of different architectures, "
                f"{', '.join(sorted(set(rows['architecture'])))}; give each its own name."
            )
        seeds = rows.groupby("training_seed")
        seen = {str(seed): set(part["perturbation"]) for seed, part in seeds}
        for seed, names in seen.items():
            missing = sorted(set().union(*seen.values()) - names)
            if missing:
                raise ValueError(
                    f"recipe {recipe!r}, seed {seed}, was not evaluated under "
                    f"{', '.join(missing)}, as its other seeds were; evaluate it, or leave the "
                    "perturbation or the seed out."
                )


def _in_words(value: object) -> str:
    """With the six digits that tables in files keep."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Evaluation:
    """What models got right.

    Attributes:
        table: one row for each (model, perturbation) with the columns `COLUMNS`: model (recipe
            and seed), recipe, architecture, training_seed, perturbation (its label), family,
            severity (0 where it doesn't apply), eps (0 likewise; infinite for any radius),
            accuracy (0 to 1), n (images), norm (what eps is measured in, "Linf" or "L2"; "" where
            it doesn't apply), options (those that were given, in words).
        correct: bool (rows, n), whether each image was classified correctly; images in the order
            of the split. For attacks: correct both clean and attacked.
        computed: rows that were computed when it was made; the others came from the store.
        attacked: for the rows of attacks, by position, what `details` returns.
    """

    table: pd.DataFrame
    correct: np.ndarray = field(repr=False)
    computed: int
    attacked: Mapping[int, pd.DataFrame] = field(default_factory=dict, repr=False)

    def details(self, model: str, attack: str) -> pd.DataFrame:
        """What an attack did to each image, one row an image, for each radius in turn.

        Args:
            model: as in the table's column model, such as "mtlat-0".
            attack: as in its column perturbation.

        Returns a frame with the columns eps; image, the position in the split; and, as in
        `robustlib.attacks.AttackResult`, clean_correct, robust_correct, norm and steps.

        Raises:
            ValueError: the model was not evaluated under that attack, or under several of the name
            with different options.
        """
        rows = (self.table["model"] == model) & (self.table["perturbation"] == attack)
        found = [
            self.attacked[row].assign(eps=self.table["eps"].iloc[row])
            for row in np.flatnonzero(rows).tolist()
            if row in self.attacked
        ]
        if not found:
            known = sorted({self.table["perturbation"].iloc[row] for row in self.attacked})
            raise ValueError(
                f"model {model!r} was not evaluated under an attack {attack!r}; models: "
                f"{', '.join(self.table['model'].unique())}; attacks: {', '.join(known) or 'none'}."
            )
        if self.table[rows]["options"].nunique() > 1:
            raise ValueError(
                f"{attack!r} stands for attacks with different options, "
                f"{'; '.join(sorted(set(self.table[rows]['options'])))}; give each a label of its "
                "own: Attack(..., label=...)."
            )
        columns = ["eps", "image", *DETAILS]
        return pd.concat(found, ignore_index=True)[columns]

    def where(self, rows: pd.Series | np.ndarray) -> Evaluation:
        """The part with some of the rows, bool (rows,), such as `table["severity"] <= 3`."""
        places = np.flatnonzero(rows)
        kept = self.table.iloc[places].reset_index(drop=True)
        attacked = {
            new: self.attacked[old]
            for new, old in enumerate(places.tolist())
            if old in self.attacked
        }
        return Evaluation(kept, self.correct[places], self.computed, attacked)

    def per_image(self, recipes: Sequence[str], perturbations: Sequence[str]) -> np.ndarray:
        """Correctness averaged over severities and training seeds, as the statistics need it.

        Returns float64 (recipes, perturbations, n) in [0, 1]. Its mean over the last axis is the
        accuracy A_m(c).

        Raises:
            ValueError: a pair that was not evaluated, or rows that can't be averaged (see
            `check_comparable`).
        """
        self._chosen(recipes, perturbations)
        rows = self.table.reset_index(drop=True).groupby(["recipe", "perturbation"]).indices
        return np.stack(
            [
                np.stack([self.correct[rows[recipe, name]].mean(axis=0) for name in perturbations])
                for recipe in recipes
            ]
        )

    def per_seed(self, recipes: Sequence[str], perturbations: Sequence[str]) -> np.ndarray:
        """Correctness of each training seed, averaged over severities, for crossed intervals.

        Returns (seeds, recipes, perturbations, n), the seeds in rising order for every recipe:
        bool where each perturbation has one severity, float32 in [0, 1] otherwise.

        Raises:
            ValueError: as for `per_image`, or recipes that weren't trained with the same seeds.
        """
        chosen = self._chosen(recipes, perturbations)
        by_recipe = chosen.groupby("recipe")["training_seed"]
        seeds = {recipe: sorted(found.unique().tolist()) for recipe, found in by_recipe}
        first = seeds[recipes[0]]
        for recipe in recipes:
            if seeds[recipe] != first:
                raise ValueError(
                    f"the training seeds of {recipe!r} are {seeds[recipe]}, those of "
                    f"{recipes[0]!r} {first}; give all recipes the same seeds, or leave one out."
                )
        keys = ["training_seed", "recipe", "perturbation"]
        rows = self.table.reset_index(drop=True).groupby(keys).indices
        cells = [rows[cell] for cell in itertools.product(first, recipes, perturbations)]
        shape = (len(first), len(recipes), len(perturbations), self.correct.shape[1])
        single = all(len(cell) == 1 for cell in cells)
        found = np.empty((len(cells), shape[-1]), dtype=bool if single else np.float32)
        for place, cell in enumerate(cells):
            found[place] = self.correct[cell].mean(axis=0, dtype=np.float32)
        return found.reshape(shape)

    def _chosen(self, recipes: Sequence[str], perturbations: Sequence[str]) -> pd.DataFrame:
        """The rows of the table, if every pair was evaluated and rows can be averaged."""
        known = set(zip(self.table["recipe"], self.table["perturbation"], strict=True))
        missing = [(r, p) for r in recipes for p in perturbations if (r, p) not in known]
        if missing:
            raise ValueError(f"not evaluated (recipe, perturbation): {missing}.")
        chosen = self.table["recipe"].isin(recipes) & self.table["perturbation"].isin(perturbations)
        check_comparable(self.table[chosen])
        return self.table[chosen]


def evaluate(
    models: Sequence[Classifier],
    split: Split | StreamedSplit,
    perturbations: Iterable[Perturbation],
    *,
    store: Store,
    seed: int = 0,
    batch_size: int = 250,
    progress: bool = True,
    workers: Workers | None = None,
) -> Evaluation:
    """Accuracy of every model under every perturbation (clean images are always included).

    Each corrupted set is made once and shown to all models. Results are kept in the store, one
    for each (model, perturbation, data, seed). Computes in float32 and in eval mode, and leaves
    the models as they were. Outputs that aren't finite count as wrong.

    Args:
        models: from `robustlib.training.train`, or your own from `robustlib.models.wrap`.
        split: the images, for example `dataset.test`.
        perturbations: what to evaluate under.
        store: where results are kept.
        seed: source of the perturbations' randomness.
        batch_size: images at a time; it doesn't change the perturbations.
        progress: show a progress bar on standard output.
        workers: where trained models of this store are evaluated; default, and for other models:
            here.

    Raises:
        ValueError: no models, something else than models, two models of one name, an empty split,
            or a model whose outputs for the first images aren't finite logits with a class for
            each label.

    Warns:
        TrainModeWarning: a model was in train mode.
        ProbabilityWarning: the outputs of a model look like probabilities.
    """
    _check_models(models)
    if not len(split):
        raise ValueError("nothing to evaluate: the split holds no image.")
    seed, batch_size = check_seed(seed), check_whole(batch_size, "batch_size", low=1)
    workers = workers or Workers(1)
    perturbations = list(dict.fromkeys([Clean(), *perturbations]))
    perturbations = [p.for_split(split) if isinstance(p, Stored) else p for p in perturbations]
    by_model = [
        {"model": model.identity(), "device": place_of(model, store, workers)} for model in models
    ]
    data = split.digest()
    cells: list[Cell] = []
    for perturbation in perturbations:
        shared_key = _key(perturbation, split, data, seed)
        cells += [(perturbation, i, own | shared_key) for i, own in enumerate(by_model)]
    found = [store.find("evaluations", key) for _, _, key in cells]
    missing = [cell for cell, artifact in zip(cells, found, strict=True) if artifact is None]
    with ExitStack() as stack:
        for index in sorted({index for _, index, _ in missing}):
            model = models[index].model
            stack.enter_context(evaluating(model))
            look_over(model, split.float_images(slice(0, 8)).to(device_of(model)), split.labels)
        compute(
            missing,
            models,
            split,
            seed=seed,
            batch_size=batch_size,
            store=store,
            workers=workers,
            progress=progress,
        )
    rows: list[dict[str, Any]] = []
    correct: list[np.ndarray] = []
    attacked: dict[int, pd.DataFrame] = {}
    for (perturbation, index, key), stored in zip(cells, found, strict=True):
        artifact = stored or store.find("evaluations", key)
        assert artifact is not None
        if isinstance(perturbation, Attack):
            attacked[len(rows)] = _details(artifact.tensors)
        correct.append(artifact.tensors["correct"].numpy())
        rows.append(_row(models[index], perturbation, correct[-1]))
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Evaluation(table, np.stack(correct), len(missing), attacked)


def tabulate(
    classifier: Classifier, perturbations: Sequence[Perturbation], correct: np.ndarray
) -> Evaluation:
    """An `Evaluation` of one model from results that were computed elsewhere.

    Args:
        classifier: the model.
        perturbations: what it was evaluated under.
        correct: bool (perturbations, n), which images it got right.
    """
    rows = [_row(classifier, *result) for result in zip(perturbations, correct, strict=True)]
    return Evaluation(pd.DataFrame(rows, columns=list(COLUMNS)), correct, 0)


def accuracy_against_radius(
    models: Sequence[Classifier],
    split: Split | StreamedSplit,
    names: Sequence[str],
    radii: Sequence[float],
    *,
    store: Store,
    seed: int = 0,
    batch_size: int = 250,
    progress: bool = True,
    workers: Workers | None = None,
) -> pd.DataFrame:
    """Accuracy under attacks at each of several radii.

    An attack within a radius is run at each. A minimal attack is run once, for the norms of its
    perturbations give the accuracy at any radius. A curve that doesn't fall, or that stays above
    zero at large radii, is a sign of a failing attack.

    Args:
        models: from `robustlib.training.train`, or your own from `robustlib.models.wrap`.
        split: the images.
        names: attacks.
        radii: positive, each in the norm of the attack; different attacks may need different ones.
        store: where results are kept.
        seed: as in `evaluate`, like the next.
        batch_size: images at a time.
        progress: show a progress bar on standard output.
        workers: as in `evaluate`.

    Returns a frame with one row for each (model, attack, radius), radius 0 included, which is the
    clean accuracy, and the columns model, recipe, training_seed, attack, norm, eps, accuracy, n.

    Raises:
        ValueError: no models, images, attacks or radii, or a bad radius.
        UnknownNameError: unknown attack.
    """
    check_nonempty(names, "names")
    check_nonempty(radii, "radii")
    radii = [check_number(eps, "a radius", low=0, above=True) for eps in radii]
    for name in names:
        for eps in radii:
            Attack(name, eps)
    cells = [
        Attack(name, eps)
        for name in names
        for eps in ((None,) if attacks.info(name).minimal else radii)
    ]
    result = evaluate(
        models,
        split,
        cells,
        store=store,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
        workers=workers,
    )
    rows = []
    for classifier in models:
        about: dict[str, Any] = {"model": classifier.name, "recipe": classifier.recipe}
        about["training_seed"] = classifier.seed
        for name in names:
            details = result.details(classifier.name, name)
            clean = details[details["eps"] == details["eps"].iloc[0]]["clean_correct"]
            about |= {"attack": name, "norm": attacks.info(name).norm}
            rows.append({**about, "eps": 0.0, "accuracy": clean.mean(), "n": len(split)})
            for eps in radii:
                if attacks.info(name).minimal:
                    beaten = ~details["robust_correct"] & (details["norm"] <= eps)
                    right = details["clean_correct"] & ~beaten
                else:
                    right = details[details["eps"] == eps]["robust_correct"]
                rows.append({**about, "eps": eps, "accuracy": right.mean(), "n": len(split)})
    return pd.DataFrame(rows)


def _details(tensors: Mapping[str, Tensor]) -> pd.DataFrame:
    """The per-image results of an attack, from what the store keeps."""
    values = {**tensors, "robust_correct": tensors["correct"]}
    frame = pd.DataFrame({name: values[name].numpy() for name in DETAILS})
    return frame.assign(image=range(len(frame)))


def _row(classifier: Classifier, perturbation: Perturbation, correct: np.ndarray) -> dict[str, Any]:
    return {
        "model": classifier.name,
        "recipe": classifier.recipe,
        "architecture": classifier.architecture,
        "training_seed": classifier.seed,
        "perturbation": perturbation.label,
        "family": perturbation.family,
        "severity": perturbation.severity,
        "eps": _radius(perturbation),
        "accuracy": float(correct.mean()),
        "n": len(correct),
        "norm": perturbation.norm if isinstance(perturbation, Attack) else "",
        "options": str(getattr(perturbation, "options", "")),
    }


def _radius(perturbation: Perturbation) -> float:
    if not isinstance(perturbation, Attack):
        return 0.0
    return math.inf if perturbation.eps is None else perturbation.eps


def _key(
    perturbation: Perturbation, split: Split | StreamedSplit, data: str, seed: int
) -> dict[str, Any]:
    """What determines the evaluation of a model, apart from the model."""
    own: Any
    if hasattr(perturbation, "key"):
        own = perturbation.key()
    else:  # a user's own, which may look up any corruption or attack
        own = fingerprint(perturbation, registries=True)
    steps = jobs.attacked if isinstance(perturbation, Attack) else jobs.shown
    reading = (getattr(type(split), name, None) for name in ("float_images", "__getitem__"))
    code = fingerprint(steps, *reading)
    return {"perturbation": own, "data": data, "seed": seed, "code": code}


def _check_models(models: Sequence[Classifier]) -> None:
    if not len(models):
        raise ValueError("nothing to evaluate: give at least one model.")
    for model in models:
        if not isinstance(model, Classifier):
            raise ValueError(
                f"a model must come from robustlib.training.train or robustlib.models.wrap, got "
                f"{type(model).__name__}; wrap a network: models.wrap(network, name='mine')."
            )
    names = [model.name for model in models]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"several models are called {', '.join(twice)}: their results could not be told "
            "apart. Give each its own name, or another seed."
        )


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predicted classes, int64 (N,), of float32 images (N, 3, H, W) in [0, 1]; in eval mode."""
    with evaluating(model):
        return jobs.logits(model, images).argmax(1)
