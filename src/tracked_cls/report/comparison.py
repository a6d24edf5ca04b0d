"""The page of several runs side by side: what differs between them, and which differences are more than chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tracked_cls.errors import UserError
from tracked_cls.plots.comparison import forest, overlaid_curves
from tracked_cls.report.artifacts import RunFacts, read_estimates, scored_split
from tracked_cls.report.numbers import METRIC_WORDS, duration, has_interval, interval, p_value, percent, points, short
from tracked_cls.report.origin import RUN
from tracked_cls.report.page import NO_VALUE, Picture, Section, Table, Tile, Tone, render
from tracked_cls.report.pairs import ALPHA, LETTERS, Compared, Pair, compare, letter
from tracked_cls.statistics.intervals import Estimate

_HOW = (
    "Both runs of a pair labelled the same images, so only those count that one has right and the other wrong. p is of the "
    "exact McNemar test, corrected for the number of pairs (Holm); the interval is a paired bootstrap. Below "
    f"{ALPHA} a difference counts as shown; above, these images do not tell, which is no proof of equality."
)
_COLUMNS = ("run", "images", "right here only", "right in A only", "difference, points", "95 % interval", "p", "p corrected",
            "verdict")  # fmt: skip
_IN_RUN = "plots/"
_CURVES = ("val_loss", "val_accuracy", "train_loss")
_MOST_OPTIONS = 100
_SUMMED_UP = 3  # pairs that the summary names one by one
_SHORT_NAME = 40


def page(runs: Sequence[RunFacts], plots: Path) -> str:
    """Return the page that compares two or more runs, each with the first one, from their plain facts and artifacts.

    Its pictures are left in the folder `plots`, too, which is made.
    """
    assert 2 <= len(runs) <= len(LETTERS)
    plots.mkdir(parents=True, exist_ok=True)
    compared = compare(runs)
    sections = [
        _the_runs(runs),
        _differences(runs, compared, plots),
        _curves(runs, plots),
        _options(runs),
        _numbers(runs),
        _origins(runs),
        _next(runs),
    ]
    return render(
        f"{len(runs)} runs compared",
        kind="comparison",
        lead=" · ".join(_label(runs, place) for place in range(len(runs))),
        summary=_summary(runs, compared),
        tiles=[_tile(runs, pair) for pair in compared.pairs] if len(compared.pairs) <= 2 * _SUMMED_UP else [],
        sections=sections,
        footer="A is the first run that was named: each of the others is compared with it.",
    )


def _label(runs: Sequence[RunFacts], place: int) -> str:
    name = runs[place].name
    return f"{letter(place)}: {name if len(name) <= _SHORT_NAME else name[:_SHORT_NAME] + '…'}"


def _tile(runs: Sequence[RunFacts], pair: Pair) -> Tile:
    tone: Tone = "plain" if not pair.is_shown else "good" if pair.gained > pair.lost else "bad"
    note = f"{pair.verdict}; 95 % CI {points(pair.difference.low)} to {points(pair.difference.high)}"
    return Tile(f"{letter(pair.run)} against A, points", points(pair.difference.value), note, tone)


def _summary(runs: Sequence[RunFacts], compared: Compared) -> list[str]:
    if len(compared.pairs) > _SUMMED_UP:
        counts = Counter(pair.verdict for pair in compared.pairs)
        words = [
            f"{counts['better']} better",
            f"{counts['worse']} worse",
            f"{counts['no difference shown']} with no difference shown",
        ]
        return [f"Of {len(compared.pairs)} runs compared with A: {', '.join(words)}.", *compared.refused]
    return [_sentence(pair) for pair in compared.pairs] + list(compared.refused)


def _sentence(pair: Pair) -> str:
    name, images = letter(pair.run), f"the same {pair.count:,} {pair.split} images"
    if pair.gained == pair.lost == 0:
        return f"{name} and A are right and wrong about exactly the same of {images}."
    low, high = points(pair.difference.low), points(pair.difference.high)
    p = p_value(pair.p_corrected)
    size = (
        f"{points(pair.difference.value)} percentage points of accuracy (95 % interval {low} to {high}, "
        f"p {p if p.startswith('<') else f'= {p}'})"
    )
    if pair.is_shown:
        return f"{name} is {pair.verdict} than A on {images}: {size}."
    return f"{name} and A cannot be told apart on {images}: {size}."


def _the_runs(runs: Sequence[RunFacts]) -> Section:
    header = ["", "run", "kind", "model", "data", "accuracy", "95 % interval", "validation", "time", "state"]
    rows = [_row(run, place) for place, run in enumerate(runs)]
    return Section(
        "The runs", tables=[Table("What is compared", header, rows)], text=[text for run in runs for text in run.notes]
    )


def _row(run: RunFacts, place: int) -> list[str]:
    model = run.params.get("model") or run.tags.get("model", NO_VALUE)
    took = NO_VALUE if run.seconds is None else duration(run.seconds)
    data = run.tags.get("data.name", NO_VALUE)
    return [letter(place), run.name, run.kind, model, data, *_accuracy(run), _best(run), took, run.status.lower()]


def _accuracy(run: RunFacts) -> tuple[str, str]:
    accuracy = _estimates(run).get("accuracy")
    return (
        (NO_VALUE, NO_VALUE) if accuracy is None else (f"{percent(accuracy.value)} {scored_split(run)}", _in_percent(accuracy))
    )


def _in_percent(estimate: Estimate) -> str:
    return f"{100 * estimate.low:.2f} to {100 * estimate.high:.2f}" if has_interval(estimate) else NO_VALUE


def _best(run: RunFacts) -> str:
    best = run.metrics.get("val_accuracy_best")
    return NO_VALUE if best is None else percent(best)


def _estimates(run: RunFacts) -> dict[str, Estimate]:
    """Return the numbers of a run; none where their file is not there or cannot be read, which is said elsewhere."""
    split = scored_split(run)
    try:
        return read_estimates(run.folder / "tables" / f"{split}_metrics.json") if split else {}
    except UserError:
        return {}


def _differences(runs: Sequence[RunFacts], compared: Compared, plots: Path) -> Section:
    if not compared.pairs:
        return Section("Is the difference more than chance?", text=[*compared.refused, "So no test was made."])
    text = [_HOW]
    if len({pair.split for pair in compared.pairs} - {"test"}):
        text.append("Not all of these images are test images: a model that was chosen by them looks better than it is.")
    rows = [_row_of(runs, pair) for pair in compared.pairs]
    path = plots / "differences.png"
    forest({_label(runs, pair.run): pair.difference for pair in compared.pairs}, _label(runs, 0), path)
    told = "; ".join(f"{row[0]} {row[4]} ({row[5]})" for row in rows)
    picture = Picture(
        "Differences of accuracy", f"Accuracy against A in percentage points: {told}", path.read_bytes(), _IN_RUN + path.name
    )
    table = Table("Each run against A", _COLUMNS, rows)
    return Section("Is the difference more than chance?", text=text, tables=[table], pictures=[picture])


def _row_of(runs: Sequence[RunFacts], pair: Pair) -> list[str]:
    counts = [f"{count:,}" for count in (pair.count, pair.gained, pair.lost)]
    low, high = points(pair.difference.low), points(pair.difference.high)
    tested = [p_value(pair.p), p_value(pair.p_corrected), pair.verdict]
    return [_label(runs, pair.run), *counts, points(pair.difference.value), f"{low} to {high}", *tested]


def _curves(runs: Sequence[RunFacts], plots: Path) -> Section:
    metrics = [name for name in _CURVES if sum(bool(run.history.get(name)) for run in runs)]
    if not metrics:
        return Section("How they learned")
    histories = {
        _label(runs, place): run.history for place, run in enumerate(runs) if any(run.history.get(name) for name in metrics)
    }
    path = plots / "curves.png"
    overlaid_curves(histories, metrics, path)
    alt = f"{', '.join(metrics)} by epoch, with one line for each run"
    return Section("How they learned", pictures=[Picture("Curves by epoch", alt, path.read_bytes(), _IN_RUN + path.name)])


def _options(runs: Sequence[RunFacts]) -> Section:
    keys = list(dict.fromkeys(key for run in runs for key in run.params if not key.startswith("tracking.")))
    differing = [key for key in keys if _differs(runs, key)]
    if not differing:
        return Section(
            "Options that differ", text=["All options are the same." if keys else "No options are known of these runs."]
        )
    rows = [[key, *(run.params.get(key, NO_VALUE) for run in runs)] for key in differing[:_MOST_OPTIONS]]
    note = f"The first {_MOST_OPTIONS} of {len(differing)}." if len(differing) > _MOST_OPTIONS else ""
    return Section(
        "Options that differ",
        tables=[Table(f"{len(differing)} of {len(keys)} options", ["option", *LETTERS[: len(runs)]], rows, note)],
    )


def _differs(runs: Sequence[RunFacts], key: str) -> bool:
    """Whether runs have an option with several values; one that only some have counts where others of the kind lack it."""
    known = {run.params[key] for run in runs if key in run.params}
    having = {run.kind == "evaluate" for run in runs if key in run.params}
    return len(known) > 1 or any(key not in run.params and run.params and (run.kind == "evaluate") in having for run in runs)


def _numbers(runs: Sequence[RunFacts]) -> Section:
    found = [_estimates(run) for run in runs]
    names = list(dict.fromkeys(name for estimates in found for name in estimates))
    rows = [[METRIC_WORDS.get(name, name), *(_cell(estimates.get(name)) for estimates in found)] for name in names]
    splits = [scored_split(run) for run in runs]
    header = ["number", *(f"{letter(place)}, {split}" if split else letter(place) for place, split in enumerate(splits))]
    return Section("All numbers", tables=[Table("With 95 % intervals, where they are known", header, rows)] if rows else [])


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return NO_VALUE
    return f"{short(estimate.value)} ({interval(estimate)})" if has_interval(estimate) else short(estimate.value)


def _origins(runs: Sequence[RunFacts]) -> Section:
    tags = {
        "data.digest": "data digest",
        "content.digest": "content digest",
        "weights.digest": "weights digest",
        "git.commit": "code",
    }
    rows = [[letter(place), run.run_id, *(run.tags.get(tag, NO_VALUE)[:16] for tag in tags)] for place, run in enumerate(runs)]
    text = [_shared(runs, "weights.digest", "the same weights"), _other_data(runs)]
    return Section("Data and weights", text=[line for line in text if line], tables=[
        Table("Where each comes from", ["", "run id", *tags.values()], rows)
    ])  # fmt: skip


def _shared(runs: Sequence[RunFacts], tag: str, what: str) -> str:
    """Return a sentence about runs that have the value of a tag in common."""
    by_value: dict[str, list[str]] = {}
    for place, run in enumerate(runs):
        if tag in run.tags:
            by_value.setdefault(run.tags[tag], []).append(letter(place))
    return " ".join(f"{' and '.join(letters)} have {what}." for letters in by_value.values() if len(letters) > 1)


def _other_data(runs: Sequence[RunFacts]) -> str:
    digests = {run.tags["data.digest"] for run in runs if "data.digest" in run.tags}
    return "The runs used different data, or different splits of them: their data digests differ." if len(digests) > 1 else ""


def _next(runs: Sequence[RunFacts]) -> Section:
    ids = ",".join(one.run_id for one in runs)
    return Section("What next", commands=[
        ("This page anew", f"{RUN} -e report -P runs={ids}"),
        ("Make the last one champion, if it is registered and better", f"{RUN} -e promote -P model=runs:/{runs[-1].run_id}"),
    ])  # fmt: skip
