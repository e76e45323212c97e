"""The report: whole HTML from any run, hostile names and numbers included, and true to what the run did."""

import dataclasses
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer import report_cases as cases
from trainer.recipe import load, override
from trainer.report import RunFacts, render, write
from trainer.report_advice import advice
from trainer.report_cases import Shown
from trainer.report_map import layout, spread
from trainer.report_pieces import Line, labels, line_chart, shortened, text, ticks

VOID = {"meta", "img", "br"}
HOSTILE = "</style><script>alert(1)</script>\"onload='x' &amp; \x00\x1b[31m\u202e\ud800 http://evil.example/.jpg"


class Page(HTMLParser):
    """Checks that tags close in order, and keeps what a browser would see."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert tag == self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def seen(self) -> str:
        return " ".join("".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def images(count: int, classes: int | None, seed: int = 0) -> Shown:
    """Random pictures with embeddings that crowd around their class, closer after training."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % (classes or 3)
    centres = torch.randn(classes or 3, 8, generator=draw)
    noise = torch.randn(count, 8, generator=draw)
    return Shown(
        pixels=torch.randint(0, 256, (count, 24, 24, 3), dtype=torch.uint8, generator=draw),
        aspect=torch.rand(count, generator=draw) + 0.5,
        items=tuple(f"photos/{row:03d}.jpg" for row in range(count)),
        classes=labels if classes else None,
        class_names=tuple(f"kind {number}" for number in range(classes)) if classes else (),
        is_query=None,
        before=F.normalize(centres[labels] + 2.0 * noise, dim=1),
        trained=F.normalize(centres[labels] + 1.2 * noise, dim=1),
    )


def facts(shown: Shown, **changes: Any) -> RunFacts:
    """A run of two epochs on these images."""
    scores = {"recall_at_1": 0.5, "recall_at_2": 0.75, "map_at_r": 0.25, "queries": float(len(shown.items))}
    history = [
        {"step": 5, "epoch": 1, "loss": 0.5, "pull": 0.3, "push": 0.2, "lr": 1e-4, "images_per_s": 30.0},
        {"step": 5, "epoch": 1, "recall_at_1": 0.55, "recall_at_2": 0.76, "agreement": 0.125},
        {"step": 10, "epoch": 2, "loss": 0.4, "pull": 0.25, "push": 0.15, "lr": 1e-5, "images_per_s": 40.0},
        {"step": 10, "epoch": 2, "recall_at_1": 0.6, "recall_at_2": 0.8, "agreement": 0.375},
    ]
    run = RunFacts(
        name="20260101-stml-seed0",
        model="0123456789abcdef",
        recipe=override(load("stml"), "run.epochs=10"),
        environment={"commit": "abc", "device": "a processor", "earlier": []},
        history=history,
        before=scores if shown.classes is not None else None,
        trained={**scores, "recall_at_1": 0.6} if shown.classes is not None else None,
        shown=shown,
        epoch=2,
        images=len(shown.items),
        skipped=(),
        warnings=(),
        images_per_s=35.0,
        seconds={"decode": 1.0, "train": 3700.0},
        peak_memory={"process": 2**30},
    )
    return dataclasses.replace(run, **changes)


@pytest.mark.parametrize(("count", "classes"), [(2, None), (2, 1), (3, 2), (12, None), (40, 4)], ids=str)
def test_every_run_makes_one_whole_page_without_a_network(count: int, classes: int | None) -> None:
    """Tags close in order, every picture has its pixels in the page and an alt text, nothing is fetched or run."""
    html = render(facts(images(count, classes)))
    page = Page(html)
    pictures = [(tag["src"], tag["alt"]) for tag in page.all("img")]
    assert all(source and source.startswith("data:image/webp;base64,") and alt for source, alt in pictures)
    assert all((tag["href"] or "").startswith("data:") for tag in page.all("image"))
    assert min(len(pictures), len(page.all("image")), len(page.all("svg"))) > 1
    assert page.all("script") + page.all("link") + page.all("iframe") == []
    assert "http" not in html.replace("http-equiv", "")
    assert "default-src 'none'" in html
    assert all(tag.get("aria-label") for tag in page.all("svg"))
    assert html.index("prefers-color-scheme: dark") < html.index("<body>")


def test_hostile_names_stay_text() -> None:
    """A name with markup, quotes, control characters and bytes that are no text is shown, and is no markup."""
    shown = images(6, 2)
    shown = dataclasses.replace(shown, items=(HOSTILE, *shown.items[1:]), class_names=(HOSTILE, "b"))
    run = facts(
        shown,
        name=HOSTILE,
        skipped=[(HOSTILE, HOSTILE)],
        warnings=[HOSTILE],
        environment={HOSTILE: HOSTILE, "earlier": []},
        history=[{"step": 1, "epoch": 1, "loss": 1.0, HOSTILE: 2.0}],
        recipe=override(load("stml"), f"encoder.weights={HOSTILE.replace(chr(0xD800), '')}"),
    )
    html = render(run)
    page = Page(html)
    assert page.all("script") == []
    assert {"onload"} & {name for _, attributes in page.tags for name in attributes} == set()
    assert html.encode() == html.encode("utf-8", "strict")
    assert [char for char in html if not char.isprintable() and char != "\n"] == []
    assert "<script>alert(1)</script>" in page.seen
    assert r"\x00\x1b[31m\u202e\ud800" in page.seen


def test_the_head_tells_what_changed_and_how_surely() -> None:
    """R@1 before and after, the interval of their difference, and a table of every metric that both have."""
    shown = images(40, 4)
    page = Page(render(facts(shown)))
    comparison = cases.compare(shown)
    assert shown.classes is not None
    change = cases.changed(comparison, shown.classes)
    low, high = 10 - 100 * change.margin, 10 + 100 * change.margin
    told = f"Training raised R@1 from 0.500 to 0.600: +10.0 points (95 % interval {low:+.1f} to {high:+.1f})."
    assert told.replace("-", "−") in page.seen
    assert f"put right for {change.mended}" in page.seen
    assert "R@1 0.5000 0.6000 +0.1000" in " ".join(page.words)
    assert "MAP@R 0.2500 0.2500 0" in " ".join(page.words)
    assert "1 h 1 min" in page.seen
    assert "epoch of the model2 of 2" in page.seen
    assert "1.00 GiB" in page.seen
    assert "What to try next" not in page.seen


def test_every_series_of_the_log_has_a_curve() -> None:
    """Loss terms, metrics with their level before, whatever else is logged by epoch, and speed."""
    page = Page(render(facts(images(6, 2))))
    told = [tag["aria-label"] or "" for tag in page.all("svg")]
    assert "pull by step: 0.3 at first, 0.25 at last" in told
    assert "agreement by epoch: 0.125 at first, 0.375 at last" in told
    assert "images/s, steps alone by step: 30 at first, 40 at last" in told
    recalls = "R@1 0.55 at first, 0.6 at last (before 0.5), R@2 0.76 at first, 0.8 at last (before 0.75)"
    assert f"R@k by epoch: {recalls}" in told
    assert [label for label in told if label.startswith(("queries", "step", "epoch"))] == []


def test_without_labels_there_is_no_verdict_but_both_neighbourhoods() -> None:
    """No table of metrics and no frames, but how much of the neighbourhoods stayed, and what to do for a verdict."""
    shown = images(12, None)
    page = Page(render(facts(shown)))
    assert [tag for tag in page.all("figure") if tag.get("class") in ("right", "wrong")] == []
    assert "kinsight evaluate 0123456789abcdef" in page.seen
    assert f"It kept {cases.overlap(cases.compare(shown)):.0%}" in page.seen
    assert "Drawn at random" in page.seen
    assert "What to try next" not in page.seen


def test_a_training_that_does_not_beat_its_start_is_told_what_to_try() -> None:
    """The advice of the run's own numbers is in the page."""
    before = {"recall_at_1": 0.5}
    worse = facts(images(12, 3), before=before, trained={"recall_at_1": 0.4})
    page = Page(render(worse))
    assert "Training lowered R@1" in page.seen
    for step in advice(worse.recipe, worse.history, before):
        assert " ".join(step.split()) in page.seen


def test_skipped_images_are_listed_up_to_a_hundred() -> None:
    """Each with its reason; beyond a hundred the rest is counted, and the table beside the page is named."""
    skipped = [(HOSTILE, HOSTILE)] + [(f"{i}.jpg", 'truncated, "late"') for i in range(1_002)]
    page = Page(render(facts(images(4, 2), skipped=skipped)))
    assert "1,003 skipped" in page.seen
    assert "images skipped1,003" in page.seen
    assert '98.jpg: truncated, "late"' in page.seen
    assert "99.jpg" not in page.seen
    assert "And 903 more: skipped.csv, beside this page, lists all." in page.seen


def test_a_loss_that_rises_is_explained() -> None:
    """Where targets move, a rising loss is no fault, and the page says so; a falling one needs no word."""
    rising = [{"step": 1, "loss": 1.0, "pull": 1.0}, {"step": 2, "loss": 2.0, "pull": 2.0}]
    assert "It rose" in Page(render(facts(images(6, 2), history=rising))).seen
    assert "It rose" not in Page(render(facts(images(6, 2), history=rising[::-1]))).seen


def test_the_sum_of_one_loss_term_is_not_drawn_twice() -> None:
    """Of a sum and its only term the term is drawn."""
    page = Page(render(facts(images(6, 2), history=[{"step": 1, "loss": 1.0, "pull": 1.0}])))
    told = [tag["aria-label"] or "" for tag in page.all("svg")]
    assert [label.split()[0] for label in told if label.startswith(("loss", "pull"))] == ["pull"]


def test_a_report_of_many_images_stays_small(tmp_path: Path) -> None:
    """With every thumbnail that there can be, of noise, which compresses worst, the file is below 3 MB."""
    shown = images(400, 20)
    shown = dataclasses.replace(shown, items=tuple(f"{'long name ' * 20}{i}.jpg" for i in range(400)))
    write(tmp_path / "report.html", facts(shown))
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def naive_neighbours(embeddings: Tensor, query: int, gallery: list[int], k: int) -> list[int]:
    found = [row for row in gallery if row != query]
    return sorted(found, key=lambda row: (-float(embeddings[query] @ embeddings[row]), row))[:k]


@pytest.mark.parametrize("split", [False, True])
def test_neighbours_are_those_of_a_plain_loop(split: bool) -> None:
    """Leave-one-out, or queries among the gallery; a query that can't be answered is not asked."""
    shown = images(30, 4)
    labels = torch.cat([torch.tensor([3]), torch.arange(29) % 3])  # the first image is alone in its class
    is_query = torch.arange(30) % 4 == 0 if split else None
    shown = dataclasses.replace(shown, classes=labels, is_query=is_query)
    comparison = cases.compare(shown)
    asked = [row for row in range(1, 30) if is_query is None or is_query[row]]
    gallery = [row for row in range(30) if is_query is None or not is_query[row]]
    assert asked == comparison.queries.tolist() == comparison.trained.queries.tolist()
    for found, embeddings in ((comparison.before, shown.before), (comparison.trained, shown.trained)):
        expected = [naive_neighbours(embeddings, row, gallery, 8) for row in asked]
        assert expected == found.rows.tolist()
        similarity = [
            [float(embeddings[q] @ embeddings[r]) for r in rows] for q, rows in zip(asked, expected, strict=True)
        ]
        assert np.allclose(similarity, found.similarity, atol=1e-6)


def test_cases_and_confusions_are_what_they_are_called() -> None:
    """Mended, mistaken and confused queries, counted once more by hand."""
    shown = images(60, 5, seed=3)
    assert shown.classes is not None
    comparison = cases.compare(shown)
    before, after = (f.correct(shown.classes)[:, 0].tolist() for f in (comparison.before, comparison.trained))
    mended = cases.mended(comparison, shown.classes, 100)
    mistaken = cases.mistaken(comparison, shown.classes, 100)
    assert {i for i in range(60) if after[i] and not before[i]} == set(mended)
    assert {i for i in range(60) if not after[i]} == set(mistaken)
    assert len({int(shown.classes[i]) for i in mended[:3]}) == 3  # each class has its turn before one has a second
    change = cases.changed(comparison, shown.classes)
    assert (sum(after), sum(before)) == (change.kept + change.mended, change.kept + change.broken)
    assert math.isclose(change.margin, 1.96 * math.sqrt(change.mended + change.broken) / 60)
    confusions = cases.confusions(comparison, shown.classes, 100)
    assert sum(pair.queries for pair in confusions) == 60 - sum(after)
    assert all(pair.of_class != pair.taken_for for pair in confusions)
    nearest = dict(zip(comparison.queries.tolist(), comparison.trained.rows[:, 0].tolist(), strict=True))
    similarity = dict(zip(comparison.queries.tolist(), comparison.trained.similarity[:, 0].tolist(), strict=True))
    for pair in confusions:
        assert nearest[pair.query] == pair.neighbour
        kind = (pair.of_class, pair.taken_for)
        alike = [q for q, n in nearest.items() if (int(shown.classes[q]), int(shown.classes[n])) == kind]
        assert similarity[pair.query] == max(similarity[q] for q in alike)
    assert sorted((pair.queries for pair in confusions), reverse=True) == [pair.queries for pair in confusions]


def test_two_thousand_queries_are_enough() -> None:
    """Of more images a fixed sample is searched, among all of them."""
    shown = images(2_100, 7)
    comparison = cases.compare(shown)
    assert (len(comparison.queries), comparison.answerable) == (2_000, 2_100)
    assert sorted(set(comparison.queries.tolist())) == comparison.queries.tolist()
    assert int(comparison.trained.rows.max()) >= 2_000
    assert cases.compare(shown).queries.tolist() == comparison.queries.tolist()


def test_a_line_breaks_where_values_are_not_finite() -> None:
    """NaN leaves a gap, is counted in a note, and a series of nothing else is a note alone."""
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, math.nan), (4.0, math.inf), (5.0, 1.0)]
    html = line_chart("loss", "step", [Line("", points)])
    Page(html)
    assert html.count("<path") == 2
    assert "2 of its values are not finite" in html
    nothing = line_chart("loss", "step", [Line("", [(1.0, math.nan)])])
    assert "<svg" not in nothing
    assert "1 of its values" in nothing


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e9, 123_456.0])
def test_one_point_and_constant_series_are_drawn_inside_the_chart(value: float) -> None:
    """A single epoch is a dot; a level line is in the middle; nothing divides by zero."""
    for points in ([(1.0, value)], [(1.0, value), (2.0, value)]):
        (dot, *_) = Page(line_chart("x", "epoch", [Line("", points, baseline=value)])).all("circle")
        assert 0 < float(dot["cx"] or "nan") < 360
        assert 0 < float(dot["cy"] or "nan") < 190


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.4471, 0.4532), (1, 2), (-5e-5, 3e-5), (0, 123_456), (7, 7)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    """One to six values between the ends."""
    found = ticks(low, high)
    assert 1 <= len(found) <= 6
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    steps = np.diff(found)
    assert len(steps) == 0 or f"{steps[0]:e}"[0] in "125"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.05, 0.1], ["0.00", "0.05", "0.10"]),
        ([0.0, 5e-05, 0.0001], ["0.00000", "0.00005", "0.00010"]),
        ([1e-7, 2e-7], ["1e-07", "2e-07"]),
        ([10_000, 20_000], ["10,000", "20,000"]),
        ([0.5], ["0.5"]),
    ],
)
def test_ticks_of_one_axis_have_as_many_digits(values: list[float], expected: list[str]) -> None:
    """As many as their step needs; tiny ones in powers of ten."""
    assert labels(values) == expected


def test_the_map_is_the_same_each_time_and_keeps_neighbours_near() -> None:
    """Three tight groups stay three groups, whatever the number of images."""
    for count in (12, 60):
        groups = torch.arange(count) % 3
        embeddings = F.normalize(torch.eye(3, 6)[groups] + 0.01 * images(count, 3).trained[:, :6], dim=1).numpy()
        at = layout(embeddings)
        assert at.tolist() == layout(embeddings).tolist()
        assert (at.min(), at.max()) == (0, 1)
        for group in range(3):
            own = at[groups == group]
            others = np.linalg.norm(at[groups != group] - own.mean(0), axis=1)
            assert np.linalg.norm(own - own.mean(0), axis=1).max() < others.min()


@pytest.mark.parametrize(("count", "dim"), [(2, 1), (2, 5), (40, 5), (40, 1)])
def test_images_that_are_all_alike_lie_in_the_middle(count: int, dim: int) -> None:
    """No direction differs, so there is no layout, and no division by zero either."""
    assert (layout(np.ones((count, dim), np.float32)) == 0.5).all()


def test_thumbnails_keep_apart() -> None:
    """At most 200, none over another."""
    at = np.random.default_rng(0).uniform(0, 1000, (1_500, 2))
    chosen = at[spread(at)]
    apart = np.abs(chosen[:, None] - chosen[None]).max(2) + np.eye(len(chosen)) * 1000
    assert 100 < len(chosen) <= 200
    assert apart.min() > 46


def test_long_names_keep_their_ends() -> None:
    """The middle is left out, because paths differ at their ends."""
    assert shortened("a/b.jpg", 20) == "a/b.jpg"
    assert shortened("x" * 50 + "/last.jpg", 21) == "xxxxxxx…xxxxx/last.jpg"
    assert text("<&\"'\n") == "&lt;&amp;&quot;&#x27;\\n"
