"""Update: add images or classes to the data of a bundle, and fit it again with the same settings and splits.

bundle -> its sources and splits -> with the new images -> fit -> held-out answers compared
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transferapp.backbones.registry import BACKBONES
from transferapp.bundle.format import Bundle, read_bundle
from transferapp.config import FitConfig, make_config
from transferapp.data.dataset import Earlier, Split
from transferapp.data.options import Source, SourceOptions
from transferapp.data.sources import open_sources
from transferapp.errors import BundleError, UsageError
from transferapp.recipes.bundle_data import sources_of
from transferapp.recipes.fit.fit import fit
from transferapp.system.progress import Progress, Silent

Row = dict[str, str]
"""A row of `split.csv`."""


@dataclass(frozen=True)
class ChangedAnswer:
    """A held-out image whose prediction is another one after the update."""

    name: str
    class_name: str
    before: str
    after: str


@dataclass(frozen=True)
class UpdateResult:
    """Outcome of an update.

    Attributes:
        path: Folder of the bundle.
        manifest: Its manifest.
        new_images: Different contents that were added, by class and then by split.
        new_classes: Classes that were added.
        num_compared: Held-out images of before, whose predictions are compared.
        accuracy: Accuracy on these before and after; None if there are none.
        changed: Those whose prediction changed.
        seconds: Time of the update.
    """

    path: Path
    manifest: dict[str, Any]
    new_images: dict[str, dict[str, int]]
    new_classes: tuple[str, ...]
    num_compared: int
    accuracy: tuple[float, float] | None
    changed: tuple[ChangedAnswer, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        values = {name: value for name, value in vars(self).items() if name != "manifest"}
        return {**values, "path": str(self.path), "changed": [dataclasses.asdict(each) for each in self.changed]}


def update(
    path: Path, data: str | None = None, *, source: SourceOptions | None = None, progress: Progress | None = None
) -> UpdateResult:
    """Add images to those that a bundle was fitted on, and replace it in one step.

    The result is that of a fit on all images with the settings and the backbone of the bundle, where the earlier images have
    the splits that they had. Cached features are used again, so that only the new images run through the network.

    Args:
        path: A bundle that `fit` or `update` wrote, whose images are still there.
        data: The images to add: anything that a fit takes; None for those that were added to the bundle's own data since.
        source: Columns and places that the user named for these.
        progress: Receives progress updates.

    Raises:
        BundleError: There is no such bundle, or it was not made by a fit.
        DataError: The earlier images are not there as they were, there are no new ones, or they cannot be used.
    """
    progress, started = progress or Silent(), time.perf_counter()
    before = read_bundle(path)
    config, sources = _settings(before)
    rows = list(before.split_rows())
    if data is not None:
        sources.append(Source(data, source or SourceOptions()))
    dataset = dataclasses.replace(open_sources(sources, progress=progress), earlier=_earlier(path, rows))
    result = fit(config, progress, source=dataset)
    after = list(read_bundle(result.path).split_rows())
    compared = _compare(rows, after)
    known = {row["sha256"] for row in rows}
    return UpdateResult(
        path=result.path,
        manifest=result.manifest,
        new_images=_counts([row for row in after if row["sha256"] not in known]),
        new_classes=tuple(name for name in result.manifest["class_names"] if name not in before.class_names),
        seconds=round(time.perf_counter() - started, 2),
        **compared,
    )


def _settings(bundle: Bundle) -> tuple[FitConfig, list[Source]]:
    """Return the settings of a bundle's fit, with its own backbone and place, and its sources.

    The backbone stays, because the cached features are of it, and so that a bundle that is served does not become slower.
    """
    manifest = bundle.manifest
    for kind, field in (("an ensemble", "members"), ("a search", "search")):
        if manifest.get(field):
            raise BundleError(
                f"{bundle.path} was made by {kind} and cannot be updated",
                expected="a bundle that `transferapp fit` wrote",
                hint="Fit with all images, or run the command that made it again",
            )
    hint = "An update needs all images: run it where the fit ran, or fit again with all of them"
    sources = sources_of(bundle, hint)
    try:
        config = make_config(manifest["config"])
    except (KeyError, TypeError, UsageError) as error:
        raise BundleError(
            f"{bundle.path} does not say how it was fitted ({error})", hint="Fit again with all images"
        ) from error
    used = manifest.get("backbone", {}).get("name")
    if config.backbone == "auto" and used in BACKBONES:
        config = dataclasses.replace(config, backbone=used)
    return dataclasses.replace(config, out=str(bundle.path)), sources


def _earlier(bundle: Path, rows: list[Row]) -> Earlier:
    splits: dict[str, set[Split]] = defaultdict(set)
    for row in rows:
        splits[row["sha256"]].add(row["split"])  # type: ignore[arg-type]
    return Earlier(
        str(bundle),
        {content: frozenset(found) for content, found in splits.items()},
        {row["sha256"]: row["name"] for row in rows},
    )


def _counts(rows: list[Row]) -> dict[str, dict[str, int]]:
    contents = {(row["class_name"], row["split"], row["sha256"]) for row in rows}
    counted: dict[str, Counter[str]] = defaultdict(Counter)
    for class_name, split, _ in sorted(contents):
        counted[class_name][split] += 1
    return {class_name: dict(splits) for class_name, splits in counted.items()}


def _compare(before: list[Row], after: list[Row]) -> dict[str, Any]:
    """Compare the predictions for the held-out images of before."""
    now = {row["sha256"]: row for row in after if row["split"] == "test"}
    pairs = [(row, now[row["sha256"]]) for row in before if row["split"] == "test" and row["sha256"] in now]
    changed = tuple(
        ChangedAnswer(new["name"], new["class_name"], old["prediction"], new["prediction"])
        for old, new in pairs
        if old["prediction"] != new["prediction"]
    )
    right_before = sum(old["prediction"] == new["class_name"] for old, new in pairs)
    right_after = sum(new["prediction"] == new["class_name"] for _, new in pairs)
    accuracy = (right_before / len(pairs), right_after / len(pairs)) if pairs else None
    return {"num_compared": len(pairs), "accuracy": accuracy, "changed": changed}
