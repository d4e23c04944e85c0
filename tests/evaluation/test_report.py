"""The report of a fit: figures, markup, escaping, and the whole text in golden/report.txt."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.golden import check_golden
from tests.helpers.manifests import (
    leaks,
    long_manifest,
    make_manifest,
    metrics_of,
    mixed_manifest,
    parity,
    reason,
    some_metrics,
    tuned_manifest,
)
from transferapp.evaluation.report import charts, fit_report, pages, wording
from transferapp.evaluation.report.fit_report import render_report
from transferapp.evaluation.report.pages import Thumbnail, thumbnail

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></title><h1>",
    "{{ 7 * 191 }}{% raw %}",
    "\N{DOG FACE} \N{EGG}",
    "\u202egpj.\u05db\u05dc\u05d1",
    "long_" * 100,
)
VOID = {"meta", "link", "img", "br", "wbr", "input", "hr"}


class Page(HTMLParser):
    """The elements of a page, and the text by element."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.rows: list[list[str]] = []
        self._blocks = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"attribute twice in {tag}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._blocks += {"td": " | ", "th": " | ", "span": " ", "bdi": " ", "text": " "}.get(tag, "")
        self._blocks += "\n" if tag in {"p", "li", "dt", "dd", "tr", "h1", "h2", "h3", "figcaption", "caption"} else ""

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self.text += data
        self._blocks += data.replace("\n", " ")
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def named(self, tag: str, css: str = "") -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and (not css or css in (a.get("class") or "").split())]

    def row(self, *start: str) -> list[str]:
        """The one table row that begins with these cells."""
        found = [row for row in self.rows if tuple(row[: len(start)]) == start]
        assert len(found) == 1, (start, found)
        return found[0]

    def words(self) -> str:
        return " ".join(self.text.split())

    def lines(self) -> str:
        """The text, a line for each block and a bar between cells."""
        return "\n".join(
            " ".join(line.split()).removesuffix(" |") for line in self._blocks.splitlines() if line.strip()
        )


def image(label: str = "ant", predicted: str | None = None, score: float | None = None) -> Thumbnail:
    return Thumbnail(f"test/{label}.jpg", thumbnail(Image.new("RGB", (20, 30), "teal"), 16), label, predicted, score)


def page(manifest: dict[str, Any], samples: Sequence[Thumbnail] = (), mistakes: Sequence[Thumbnail] = ()) -> Page:
    return Page(render_report(manifest, samples=samples, mistakes=mistakes))


# The document


def test_stands_alone_and_allows_nothing_else() -> None:
    html = render_report(make_manifest(), samples=[image()], mistakes=[image("ant", "bee", 0.9)])
    document = Page(html)
    assert {"script", "iframe", "object", "form"} & {tag for tag, _ in document.tags} == set()
    for tag, attributes in document.tags:
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "http://" not in html
    assert "https://" not in html
    assert "url(" not in html


def test_policy_admits_exactly_its_own_style() -> None:
    html = render_report(make_manifest(), samples=[], mistakes=[])
    styles = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert len(styles) == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    policy = next(a["content"] for a in Page(html).named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_stay_text(name: str) -> None:
    names = [name, "plain", 'a "quoted" & <b>bold</b>']
    manifest = make_manifest(names, name=name)
    manifest["data"] = {
        **manifest["data"],
        "origin": name,
        "ignored": [{"name": name, "code": name, "reason": name}],
        "given_splits": [name],
    }
    manifest["plan"] = {**manifest["plan"], "reasons": [reason("cut", name)], "would_change": [reason("size", name)]}
    manifest["config"] = {**manifest["config"], "data": name, name: name}
    shown = Thumbnail(name, 'data:image/jpeg;base64,"><script>', name, name, 0.5)
    document = page(manifest, [shown], [shown])
    tags = {tag for tag, _ in document.tags}
    assert not {"script", "i"} & tags
    assert len(document.named("b")) == 4  # the quadrants' own
    assert [a for _, a in document.tags if any(key.startswith("on") for key in a)] == []
    assert len(document.named("h1")) == 1
    assert document.text.count(name) > 10
    assert "1337" not in document.text


def test_names_that_utf8_or_html_cannot_hold() -> None:
    bad = "caf\udce9\x00\x1b[31m.jpg"  # Latin-1 on a UTF-8 system, as os.fsdecode gives it, and control characters
    manifest = make_manifest(name=bad)
    html = render_report(manifest, samples=[], mistakes=[image(bad, "bee", 0.5)])
    html.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f]", html)
    assert "caf?\ufffd\ufffd[31m" in Page(html).text


def test_is_the_same_every_time() -> None:
    assert render_report(make_manifest(), samples=[], mistakes=[]) == render_report(
        make_manifest(), samples=[], mistakes=[]
    )


def test_every_image_and_figure_is_described_and_every_column_headed() -> None:
    document = page(make_manifest(), [image()], [image("ant", "bee", 0.91)])
    assert [a["alt"] for a in document.named("img")] == ["An image of ant", "An image of ant, classified as bee"]
    for drawing in [*document.named("svg", "chart"), *document.named("svg", "units")]:
        assert drawing["role"] == "img"
        assert drawing["aria-label"]
    for kind in ("bar", "plot"):
        assert document.named("svg", kind)
        assert all(a["aria-hidden"] == "true" for a in document.named("svg", kind))
    assert all(a.get("scope") in {"row", "col"} for a in document.named("th"))
    ids = [a["id"] for _, a in document.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"].removeprefix("#") for a in document.named("a") if a.get("href")}  # type: ignore[union-attr]
    assert targets <= set(ids)


def test_colors_can_be_read() -> None:
    css = re.findall(r"<style>(.*?)</style>", render_report(make_manifest(), samples=[], mistakes=[]), re.DOTALL)[0]
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL)]
    light, dark = themes[0], themes[1]
    for theme in (light, dark):
        for ink in ("ink", "soft", "accent", "miss"):
            for ground in ("paper", "wash"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        assert contrast(theme["ink"], theme["tint"]) >= 4.5
        assert contrast(theme["ink"], mixed(theme["accent"], theme["paper"], 0.44)) >= 4.5
        assert contrast(theme["ink"], mixed(theme["miss"], theme["paper"], 0.46)) >= 4.5


def mixed(first: str, second: str, share: float) -> str:
    pairs = zip(bytes.fromhex(first[1:]), bytes.fromhex(second[1:]), strict=True)
    return "#" + bytes(round(share * a + (1 - share) * b) for a, b in pairs).hex()


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio."""

    def luminance(color: str) -> float:
        channels = [c / 255 for c in bytes.fromhex(color[1:])]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


# The text


def test_the_whole_text() -> None:
    with_all = tuned_manifest(leaks=leaks(), class_weights={"reason": reason("classes", "Class weights are not used.")})
    pages = {
        "linear classifier": page(make_manifest(), [image()], [image("ant", "bee", 0.914)]),
        "fine-tuned": page(with_all),
        "mixture of stages": page(mixed_manifest()),
        "long images": page(long_manifest()),
        "without test images": page(
            make_manifest(metrics={"validation": some_metrics(("ant", "bee", "wasp"), 9, 4).to_json(), "test": None})
        ),
        "without held-out images": page(make_manifest(metrics={"validation": None, "test": None})),
    }
    text = "\n\n".join(f"--- {name}\n\n{each.lines()}" for name, each in pages.items())
    check_golden(Path(__file__).parent / "golden" / "report.txt", text)


def test_the_mixture_of_stages_is_a_table_of_shares() -> None:
    document = page(mixed_manifest())
    rows = [document.row(name)[2:] for name in ("block4", "block14", "top (mean)")]
    assert rows == [["10%", "0.12"], ["40%", "0.48"], ["50%", "0.60"]]
    words = document.words()
    assert "Mixture of stages" in words
    assert "95.0% with its mixture of stages" in words
    assert "cut at top" not in words
    assert "Mixture of stages" not in page(make_manifest()).words()


def test_headline_counts_the_test_images() -> None:
    words = page(make_manifest()).words()
    assert "right on 36 of 45 test images" in words
    assert "between 66.2% and 89.1%" in words  # Wilson: (36 + 1.92) / (45 + 3.84) ± 0.1145
    assert "would be right on 15." in words
    assert "5 March 2026, 14:02 UTC" in words


def test_without_held_out_images_the_headline_is_cross_validated() -> None:
    manifest = make_manifest()
    manifest["metrics"] = {**manifest["metrics"], "test": None}
    assert "right on 23 of 27 validation images" in page(manifest).words()
    manifest = make_manifest(metrics={"validation": None, "test": None})
    assert "right on 93.3% of its training images" in page(manifest).words()


def test_one_image_is_not_images() -> None:
    metrics = {"validation": None, "test": metrics_of([0], [0], ["ant", "bee"]).to_json()}
    assert "right on 1 of 1 test image " in page(make_manifest(["ant", "bee"], metrics=metrics)).words()


# The decision


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("similarity", ["similar", "different"])
def test_one_quadrant_is_marked(size: str, similarity: str) -> None:
    manifest = make_manifest()
    manifest["plan"] = {**manifest["plan"], "size": size, "similarity": similarity}
    document = page(manifest)
    assert len(document.named("td", "chosen")) == 1
    cells = document.row(f"{size} set")
    assert [("this set" in cell) for cell in cells[1:]] == [similarity == "similar", similarity == "different"]


def test_a_decision_that_is_not_the_measured_one_is_explained() -> None:
    def notes(manifest: dict[str, Any]) -> tuple[str, str]:
        return fit_report._size(manifest)["note"], fit_report._similarity_note(manifest)

    manifest = make_manifest()
    assert notes(manifest) == ("", "")
    manifest["plan"] = {**manifest["plan"], "size": "large", "similarity": "different"}
    assert "earlier stage" in notes(manifest)[1]
    manifest["config"] = {**manifest["config"], "size": "large", "similarity": "different"}
    assert [note.partition(" overrules")[0] for note in notes(manifest)] == ["--size large", "--similarity different"]
    manifest = make_manifest(["ant", "bee"])
    manifest["plan"] = {**manifest["plan"], "size": "small", "num_images": 3000}
    manifest["data"] = {**manifest["data"], "counts": {"train": {"ant": 20, "bee": 24}, "val": {}, "test": {}}}
    assert "median class" in notes(manifest)[0]
    assert fit_report._size(manifest)["median"] == 22


def test_options_are_kept_in_one_piece_and_the_rest_is_escaped() -> None:
    assert pages.options("a < b; --size and --train-views overrule it") == (
        'a &lt; b; <span class="option">--size</span> and <span class="option">--train-views</span> overrule it'
    )
    assert pages.options("plain") == "plain"


# The figures


def test_classes_hardest_first_and_the_unseen_last() -> None:
    names = ["sure", "hard", "absent", "never said"]
    figures = metrics_of([0, 0, 1, 1, 1, 3], [0, 0, 1, 0, 0, 0], names).to_json()
    rows = fit_report._class_rows({"class_names": names}, figures)
    assert [row.name for row in rows] == ["never said", "hard", "sure", "absent"]
    never, hard, sure, absent = rows
    assert (never.recall, never.precision, never.taken_for, never.taken_count) == (0.0, None, "sure", 1)
    assert (hard.recall, hard.precision, hard.taken_for, hard.taken_count) == (1 / 3, 1.0, "sure", 2)
    assert (sure.recall, sure.precision, sure.taken_for) == (1.0, 2 / 5, None)
    assert (absent.recall, absent.precision, absent.f1) == (None, None, None)
    manifest = make_manifest(names, metrics={"validation": None, "test": figures})
    cells = page(manifest).row("never said", "1", "", "0%")
    assert cells[3:] == ["0%", "–", "0%", "sure (1)"]


def test_confusion_matrix_shows_counts_and_the_list_is_sorted() -> None:
    names = ["ant", "bee", "wasp"]
    figures = metrics_of([0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 1, 1, 0, 2, 2, 2], names).to_json()
    document = page(make_manifest(names, metrics={"validation": None, "test": figures}))
    assert document.row("ant", "1", "2")[1:] == ["1", "2", ""]
    assert document.row("bee", "1", "1")[1:] == ["1", "1", ""]
    assert document.row("wasp", "", "")[1:] == ["", "", "3"]
    pairs = fit_report._confusions({"class_names": names}, figures, 9)
    assert [(p.true, p.predicted, p.count, p.num_images) for p in pairs] == [("ant", "bee", 2, 3), ("bee", "ant", 1, 2)]
    assert "2 of 3 ant classified as bee" in document.words()


def test_shade_by_share_of_the_row() -> None:
    assert [fit_report._heat(n, 10) for n in (0, 1, 2, 5, 9, 10)] == [0, 1, 2, 3, 5, 5]
    assert fit_report._heat(0, 0) == 0


@pytest.mark.parametrize(("count", "matrix"), [(2, True), (30, True), (31, False), (200, False)])
def test_any_number_of_classes(count: int, matrix: bool) -> None:
    names = [f"class {i:03}" for i in range(count)]
    document = page(make_manifest(names))
    assert bool(document.named("table", "matrix")) == matrix
    assert len(document.named("details")) == (2 if count > fit_report.ROWS_SHOWN else 0)
    assert all(any(row[0] == name and len(row) == 7 for row in document.rows) for name in names)


def test_mistakes_are_counted_and_shown_with_their_prediction() -> None:
    names = ["ant", "bee"]
    perfect = make_manifest(names, metrics={"validation": None, "test": some_metrics(names, wrong=0).to_json()})
    assert "All 30 test images" in page(perfect).words()
    assert "9 mistakes" in page(make_manifest()).words()
    some = page(make_manifest(), mistakes=[image("ant", "bee", 0.914), image("bee", "ant", None)]).words()
    assert "2 of 9 mistakes" in some
    assert "label ant model bee score 91%" in some
    assert "label bee model ant" in some


def test_ignored_files_are_counted_by_kind_and_folded_when_many() -> None:
    manifest = make_manifest()
    many = [{"name": f"{i}.jpg", "code": "too_large" if i % 5 else "unreadable", "reason": "No."} for i in range(500)]
    manifest["data"] = {**manifest["data"], "ignored": many}
    document = page(manifest)
    assert "500 files: 400 too large, 100 unreadable." in document.words()
    assert [("open" in a) for a in document.named("details")] == [False]
    assert document.row("499.jpg") == ["499.jpg", "No."]
    manifest["data"] = {**manifest["data"], "ignored": many[:1]}
    document = page(manifest)
    assert "1 file: 1 unreadable." in document.words()
    assert [("open" in a) for a in document.named("details")] == [True]
    manifest["data"] = {**manifest["data"], "ignored": many * 3}
    assert "And 500 more, in bundle.json." in page(manifest).words()


def test_counts_add_up() -> None:
    document = page(make_manifest())
    assert document.row("All classes") == ["All classes", "108", "27", "45", "180", ""]
    assert document.row("ant", "36") == ["ant", "36", "9", "15", "60", ""]


def test_what_bf16_was_compared_with_is_said() -> None:
    assert "same images. A precision" in page(make_manifest()).words()
    before = page(make_manifest(parity_before=True)).words()
    assert (
        "in f32 with those of Keras, in an earlier fit with this backbone; in other precisions with those in f32."
        in before
    )


def test_nothing_reads_nan() -> None:
    manifest = make_manifest()
    manifest["metrics"]["test"].update(loss=math.nan, calibration_error=math.inf, macro_f1=math.nan)
    manifest["parity"] = {"f32": parity("f32", math.nan)}
    manifest["backbone"] = {**manifest["backbone"], "parameters": None}
    manifest["views_tried"] = []
    words = page(manifest).words().lower()
    assert not re.search(r"\bnan\b|\binf\b|\bnone\b%", words)


# Numbers and drawings


@pytest.mark.parametrize(
    ("share", "digits", "expected"),
    [
        (0.94, 1, "94.0%"),
        (1.0, 1, "100.0%"),
        (0.9999, 1, ">99.9%"),
        (0.999, 0, ">99%"),
        (1 - 1e-16, 1, "100.0%"),
        (0.0, 1, "0.0%"),
        (0.0001, 1, "<0.1%"),
        (None, 1, "–"),
        (math.nan, 1, "–"),
    ],
)
def test_percent(share: float | None, digits: int, expected: str) -> None:
    assert charts.percent(share, digits) == expected


def test_numbers() -> None:
    assert [charts.decimal(x) for x in (12345, 0, -0.01, 2.5, None, True, math.inf)] == [
        "12,345",
        "0",
        "−0.010",
        "2.500",
        "–",
        "–",
        "–",
    ]
    assert charts.significant(1.234e-7) == "1.2e-07"
    assert charts.points(-0.1234) == "−12.3"
    assert charts.points(0.05) == "+5.0"
    assert charts.span([0.89, 0.968]) == "89.0–96.8%"
    assert wording.counted(1, "class") == "1 class"
    assert wording.counted(2000, "class") == "2,000 classes"
    assert pages.day("yesterday") == "yesterday"
    assert pages.breakable("a_b/<i>") == "a_<wbr>b/&lt;i&gt;"


def test_places_on_a_scale() -> None:
    assert fit_report.DIVERGENCE_SCALE.position(0.55) == pytest.approx(0.55)
    assert fit_report.DIVERGENCE_SCALE.position(1.3) == 1.0
    assert fit_report.SIZE_SCALE.position(1000) == pytest.approx(0.4)  # 10 to 1,000,000: a fifth each factor of ten
    assert fit_report.SIZE_SCALE.position(0) == 0.0
    assert 'x1="40.00%"' in charts.scale_chart(fit_report.SIZE_SCALE, 300, "300 images", "small")  # log10(100) / 5


@pytest.mark.parametrize(
    ("right", "total", "hits", "misses"), [(141, 150, 141, 9), (0, 1, 0, 1), (9_990, 10_000, 99, 1), (500, 500, 100, 0)]
)
def test_unit_chart_has_a_square_for_each(right: int, total: int, hits: int, misses: int) -> None:
    drawing = str(charts.unit_chart(right, total))
    assert (drawing.count('class="hit"'), drawing.count('class="miss"')) == (hits, misses)


def test_axis_of_dots() -> None:
    assert charts.DotAxis.around([0.31, 0.94]) == charts.DotAxis(0.3, 1.0)
    assert charts.DotAxis.around([0.97, 0.98]) == charts.DotAxis(0.8, 1.0)
    assert charts.DotAxis.around([]) == charts.DotAxis(0.0, 1.0)
    assert charts.DotAxis(0.2, 1.0).position(0.6) == pytest.approx(0.5)


@pytest.mark.parametrize("size", [(640, 480), (1, 1), (3000, 2), (5, 4000)])
def test_thumbnail_is_a_small_square_jpeg(size: tuple[int, int]) -> None:
    uri = thumbnail(Image.new("RGB", size, (200, 30, 90)))
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (112, 112))
    assert len(uri) < 8000


def test_thumbnail_keeps_the_middle() -> None:
    image = Image.new("RGB", (300, 100), "black")
    image.paste("white", (100, 0, 200, 100))
    data = base64.b64decode(thumbnail(image, 32).partition(",")[2])
    assert np.asarray(Image.open(io.BytesIO(data)).convert("L")).mean() > 250
