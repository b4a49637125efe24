"""What the run of record answers to each paper's question, in one sentence of numbers."""

from __future__ import annotations

import pandas as pd

from robustlib.book import results

RADIUS = 2.0  # of adversarial training, in 1/255: that of the attacks in the tests


def independence() -> str:
    """On how many corruptions training against PGD helps and harms; "" without results."""
    table = results.table("adversarial_overlap")
    if table is None or "radius" not in table:
        return ""
    pgd = table[table["method"] == "pgd"]
    radius = min(pgd["radius"], key=lambda each: abs(each - RADIUS))
    near = pgd[pgd["radius"] == radius]
    helped, harmed = (near["gain_low"] > 0).sum(), (near["gain_high"] < 0).sum()
    return (
        f"Training against attacks of radius {radius:.3g}/255 clearly helps on {helped} of "
        f"{len(near)} corruptions, and clearly harms on {harmed}."
    )


def mtlat() -> str:
    """Points that M-TLAT gains on clean, corrupted and attacked images; "" without results."""
    table = results.table("mtlat_gains")
    if table is None:
        return ""
    comparison = table["comparison"].iloc[-1]
    mine = table[(table["recipe"] == "mtlat") & (table["comparison"] == comparison)]
    gains = "; ".join(
        f"{row.group} {100 * row.gain:+.1f} ({_span(row, 100)})" for _, row in mine.iterrows()
    )
    return f"Points of accuracy that M-TLAT gains at {comparison}: {gains}."


def overlap() -> str:
    """What ImageNet-C's fifteen corruptions are worth without overlap; "" without results."""
    table = results.table("effective_numbers")
    if table is None:
        return ""
    worth = table[(table["order"] == 1) & (table["benchmark"] == "ImageNet-C, 15")].iloc[0]
    return (
        f"Of ImageNet-C's fifteen, {worth['corruptions']:.0f} have a score: they are worth "
        f"{worth['effective_number']:.1f} ({_span(worth)}) corruptions without overlap."
    )


def _span(row: pd.Series, scale: float = 1) -> str:
    return f"{scale * row['low']:.1f} to {scale * row['high']:.1f}"
