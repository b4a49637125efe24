"""Whose errors divide in a corruption error: AlexNet, a published model, or another card's model.

"The mCE of a model" means little without saying which: over fifteen corruptions or nineteen, plain
or relative, and divided by whom. Here the divisor has a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from robustlib import corruptions
from robustlib.analysis import published
from robustlib.core.checks import check_name

SEVERITIES = (1, 2, 3, 4, 5)

_ALEXNET_CLEAN = 0.435  # error on clean images, in the same paper
_ALEXNET = {  # errors at severities 1 to 5, as Hendrycks and Dietterich 2019 published them
    "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    "shot_noise": (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    "impulse_noise": (0.78374, 0.89808, 0.94870, 0.98720, 0.99548),
    "defocus_blur": (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    "glass_blur": (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    "motion_blur": (0.58430, 0.70048, 0.82108, 0.89750, 0.92638),
    "zoom_blur": (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    "snow": (0.71726, 0.88392, 0.86468, 0.91870, 0.94952),
    "frost": (0.61390, 0.79734, 0.88790, 0.89942, 0.93430),
    "fog": (0.67474, 0.76050, 0.84378, 0.87260, 0.94500),
    "brightness": (0.45140, 0.48502, 0.54048, 0.62166, 0.72440),
    "contrast": (0.64548, 0.76150, 0.88874, 0.97760, 0.99270),
    "elastic_transform": (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    "pixelate": (0.52218, 0.54620, 0.73728, 0.87092, 0.91262),
    "jpeg_compression": (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}
_ALEXNET_MEANS = {  # of the four more, only the means over severities 1 to 5 are published
    "speckle_noise": 0.845,
    "gaussian_blur": 0.787,
    "spatter": 0.718,
    "saturate": 0.658,
}


@dataclass(frozen=True)
class Reference:
    """Errors of a model, by corruption, that others' errors are divided by.

    Attributes:
        name: of the model, with its data.
        clean: error on clean images, in [0, 1].
        by_severity: errors by corruption and severity, where they are known.
        means: errors averaged over severities 1 to 5, where only these are known.
    """

    name: str
    clean: float
    by_severity: Mapping[str, Mapping[int, float]] = field(default_factory=dict, repr=False)
    means: Mapping[str, float] = field(default_factory=dict, repr=False)

    def error(self, corruption: str, severities: Sequence[int]) -> float | None:
        """Mean error over these severities, in [0, 1]; None where it isn't known."""
        known = self.by_severity.get(corruption, {})
        if all(severity in known for severity in severities):
            return sum(known[severity] for severity in severities) / len(severities)
        return self.means.get(corruption) if sorted(severities) == list(SEVERITIES) else None


def alexnet() -> Reference:
    """AlexNet on ImageNet and ImageNet-C at 224 px, the usual one (Hendrycks and Dietterich 2019).

    The four corruptions beyond the fifteen are known to three digits, averaged over severities.
    """
    by_severity = {
        name: dict(zip(SEVERITIES, errors, strict=True)) for name, errors in _ALEXNET.items()
    }
    return Reference("AlexNet on ImageNet", _ALEXNET_CLEAN, by_severity, _ALEXNET_MEANS)


def of_published(data: str, model: str) -> Reference:
    """A public model of `robustlib.analysis.published`, whose means over severities are known.

    Raises:
        UnknownNameError: no such data set or model.
    """
    table = published.load(data).droplevel("paper")
    errors = 1 - table.T[check_name(model, list(table.index), f"published model on {data}")]
    means = {name: float(errors[name]) for name in corruptions.names("imagenet_c_15")}
    return Reference(f"{model} on {data} (RobustBench)", float(errors["clean"]), means=means)
