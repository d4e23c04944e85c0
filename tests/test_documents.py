"""Links, files and commands in the documents exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "models" / "README.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_everything_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [page.parent / link for link in re.findall(r"\]\((?!https?:|#)([^)#]+)[^)]*\)", text)]
    files = re.findall(r"`((?:transferapp|service|tests|benchmarks|scripts)/[\w/.-]+)", text)
    scripts = re.findall(r"python (\w+/\w+\.py)", text)
    missing = [str(path) for path in [*links, *(ROOT / name for name in (*files, *scripts))] if not path.exists()]
    assert not missing, f"{page.name} names {missing}"


def test_the_readme_keeps_its_table_of_benchmarks_short() -> None:
    rows = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("## Benchmarks")[2].partition("## ")[0].splitlines()
    )
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")]
    assert len(cells) - 1 <= 10
    assert all(len(cell.split()) <= 12 for row in cells for cell in row)
