"""The first page: three questions, three pictures, three answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from robustlib import corruptions
from robustlib.analysis import hypotheses, interval_text
from robustlib.book import headlines, results
from robustlib.book.templates import data_uri, render


@dataclass(frozen=True)
class Question:
    """One of the three papers' questions.

    Attributes:
        text: the question.
        paper: where it was asked.
        notebook: the chapter that answers it.
        headline: the answer in numbers, one sentence; "" without results.
        claims: table of what was measured of the paper's claims.
        picture: name of a figure of the run of record.
        caption: what it shows.
    """

    text: str
    paper: str
    notebook: str
    headline: Callable[[], str]
    claims: str
    picture: str
    caption: str


QUESTIONS = (
    Question(
        "Is robustness to attacks independent of robustness to common corruptions?",
        "Are Adversarial Robustness and Common Perturbation Robustness Independent Attributes? "
        "(2019), arXiv 1909.02436",
        "02_common_vs_adversarial",
        headlines.independence,
        "claims_independence",
        "adversarial_gains",
        "Accuracy gained by adversarial training, by family of corruptions and radius",
    ),
    Question(
        "Can one training method, M-TLAT, give both?",
        "Addressing Neural Network Robustness with Mixup and Targeted Labeling Adversarial "
        "Training (2020), arXiv 2008.08384",
        "03_mtlat",
        headlines.mtlat,
        "claims_mtlat",
        "mtlat_parts",
        "Points of accuracy that M-TLAT and recipes with a part of it gain over the standard "
        "model, on clean images, nineteen corruptions and five attacks",
    ),
    Question(
        "Which corruptions of a benchmark measure the same thing?",
        "Using the Overlapping Score to Improve Corruption Benchmarks (2021), arXiv 2105.12357",
        "04_corruption_overlap",
        headlines.overlap,
        "claims_overlap",
        "overlap_atlas",
        "Overlapping scores of all pairs of corruptions, clustered",
    ),
)


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and what the run of record says of it, in words."""

    verdict: str
    statement: str
    measured: str


@dataclass(frozen=True)
class Answer:
    """What the run of record says to a question.

    headline: the answer in numbers, or "". summary: of the verdicts. claims: empty if there is no
    result yet. origin: of the results. picture: an address that holds it, or "".
    """

    question: Question
    headline: str
    summary: str
    claims: list[Claim]
    origin: str
    picture: str


def answer(question: Question) -> Answer:
    """From the committed tables and figures alone."""
    table = results.table(question.claims)
    rows = [] if table is None else table.to_dict("records")
    claims = [Claim(row["verdict"], row["statement"], measured(row)) for row in rows]
    png = results.figure(question.picture)
    return Answer(
        question,
        question.headline(),
        summary([claim.verdict for claim in claims]),
        claims,
        _origin(results.origin(question.claims)),
        data_uri(png) if png else "",
    )


def summary(verdicts: list[str]) -> str:
    """How many claims got which verdict, in a sentence."""
    if not verdicts:
        return "There is no result of record yet."
    counts = Counter(verdicts)
    if len(counts) == 1:
        each = "The claim is" if len(verdicts) == 1 else f"All {len(verdicts)} claims are"
        return f"{each} {verdicts[0]}."
    parts = [f"{number} {verdict}" for verdict, number in counts.items()]
    return f"Of {len(verdicts)} claims: {', '.join(parts)}."


def measured(row: Mapping[Any, Any]) -> str:
    """What was measured of a claim, a row of a table of claims: value, interval, test, margin."""
    interval = interval_text(row["low"], row["high"])
    test = hypotheses.in_words(row["test"], row["above"])
    return f"{row['measure']}: {row['value']:.3f} (95 % interval: {interval}; test of {test})"


def landing_page(
    chapters: Mapping[str, tuple[str, Mapping[str, str]]], cards: Mapping[str, str]
) -> str:
    """The page, HTML.

    chapters: by run, what it shows and its chapters' titles by notebook. cards: titles of the
    report cards by file.
    """
    opening = results.figure("gallery", "default")  # generated images, which anyone may copy
    return render(
        "landing",
        "How robust is an image classifier, and to what?",
        answers=[answer(question) for question in QUESTIONS],
        chapters=chapters,
        cards=cards,
        gallery=data_uri(opening) if opening else "",
        count=len(corruptions.names()),
    )


def _origin(record: Mapping[str, Any]) -> str:
    if not record:
        return ""
    had = record["parameters"]
    facts = [f"results of {record['date'][:10]}"]
    if "commit" in record:
        facts.append(f"commit {record['commit']}")
    if "seeds" in had:
        facts.append(f"{len(had['seeds'])} training seeds")
    if "n_test" in had:
        facts.append(f"{had['n_test']:,} test images")
    return ", ".join(facts)
