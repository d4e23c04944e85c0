"""Folders of tiny images, each unlike every other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from PIL import Image


def paint(path: Path, number: int = 0) -> Path:
    """Write an image whose content is its number; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), (number % 256, number // 256 % 256, 80)).save(path)
    return path


def tree(root: Path, counts: Mapping[str, int]) -> Path:
    """Write `counts[folder]` images into each folder below `root`; all of them differ."""
    number = 0
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            paint(root / folder / f"{index:03}.png", number)
            number += 1
    return root
