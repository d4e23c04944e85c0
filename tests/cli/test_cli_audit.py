"""`transferapp audit` and `doctor` as commands."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_cli_errors import complaint
from tests.data.test_near_duplicates import photo
from tests.helpers.fitted import BACKBONE, ROOT, draw_folders, transferapp
from transferapp.evaluation.report.pages import names_shown

TRASH = ROOT.parent / "shared" / "data" / "trash"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two classes of twenty, one of the images twice, and one file that is none."""
    for index in range(40):
        place = tmp_path / "images" / ("ant" if index < 20 else "bee")
        place.mkdir(parents=True, exist_ok=True)
        photo(index, side=64).save(place / f"{index}.png")
    shutil.copy(tmp_path / "images" / "ant" / "0.png", tmp_path / "images" / "bee" / "twin.png")
    (tmp_path / "images" / "ant" / "page.jpg").write_bytes(b"<html>")
    return tmp_path / "images"


def test_an_audit_is_a_table_a_document_and_a_page(images: Path, tmp_path: Path) -> None:
    done = transferapp("audit", "--data", images, "--json", tmp_path / "a.json", "--page", tmp_path / "a.html")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    for said in (
        "41 images in 2 classes",
        "1 exact duplicate, in 1 group",
        "1 group of duplicates has more than one label",
        "exact ant/0.png, bee/twin.png [2 labels]",
        "1 file was left out: ant/page.jpg",
    ):
        assert said in words
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert document["counts"] == {"ant": 20, "bee": 21}
    assert document["ignored"][0]["code"] == "unsupported_format"
    assert document["refusal"] is None
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert html.count("data:image/jpeg;base64,") == len(names_shown(document)) >= 2


def test_an_audit_takes_the_columns_of_a_table(images: Path, tmp_path: Path) -> None:
    (images / "ant" / "page.jpg").unlink()
    rows = [f"{path.relative_to(images.parent)},{path.parent.name}" for path in sorted(images.rglob("*.png"))]
    (tmp_path / "table.csv").write_text("where,what\n" + "\n".join(rows) + "\n", encoding="utf-8")
    columns = ("--path-column", "where", "--label-column", "what")
    done = transferapp("audit", "--data", tmp_path / "table.csv", *columns)
    assert done.returncode == 0, done.stderr
    assert "41 images in 2 classes" in " ".join(done.stdout.split())
    assert "nowhere" in complaint(2, "doctor", "--data", tmp_path / "table.csv", "--label-column", "nowhere")


def test_what_cannot_be_learned_from_is_shown_first_and_then_refused(images: Path, tmp_path: Path) -> None:
    for index in range(4):
        (images / "bee" / f"bad {index}.jpg").write_bytes(b"")
    done = transferapp("audit", "--data", images, "--json", tmp_path / "a.json")
    assert done.returncode == 3
    assert "5 files were left out" in done.stdout
    assert "Error: 5 of 46 images" in done.stderr
    assert "5 of 46 images" in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["refusal"]


def test_what_cannot_be_audited_is_one_clear_line(tmp_path: Path) -> None:
    assert "There is no file or folder" in complaint(3, "audit", "--data", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no class folders with images" in complaint(3, "audit", "--data", tmp_path / "empty")
    assert "Missing option '--data'" in complaint(2, "audit")
    assert "Missing option '--data'" in complaint(2, "doctor")


def test_the_doctor_refuses_before_any_work(images: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("path,fix\nant/0.png,bee\n")
    said = complaint(2, "doctor", "--data", images, "--out", tmp_path / "mine.csv")
    assert "has 1 fix filled in, which would be lost" in said
    assert "ends in .csv" in complaint(2, "doctor", "--data", images, "--out", tmp_path / "list.txt")
    assert "There is no folder" in complaint(2, "doctor", "--data", images, "--out", tmp_path / "x" / "list.csv")
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("path,fix\nant/0.png,wasp\n")
    said = complaint(3, "fit", "--data", images, "--out", tmp_path / "m", "--label-fixes", wrong)
    assert "gives ant/0.png the class 'wasp'" in said


@pytest.mark.slow
def test_the_doctors_list_goes_back_into_a_fit(tmp_path: Path) -> None:
    data = draw_folders(tmp_path / "drawings", per_class=20, seed=5)
    for index in range(3):
        (data / "dots" / f"dots-{index:02}.png").rename(data / "rings" / f"moved-{index}.png")
    done = transferapp("doctor", "--data", data, "--out", tmp_path / "labels.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "labels.html").is_file()
    with (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {row["path"] for row in rows}
    assert len(found & {f"rings/moved-{index}.png" for index in range(3)}) >= 2
    for row in rows:
        moved = "moved" in row["path"]
        row["fix"] = "dots" if moved else "drop" if row is rows[-1] else ""
    with (tmp_path / "labels.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    done = transferapp(
        "fit", "--data", data, "--out", tmp_path / "m", "--backbone", BACKBONE, "--train-views", "0",
        "--label-fixes", tmp_path / "labels.csv", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    with (tmp_path / "m" / "split.csv").open(encoding="utf-8", newline="") as stream:
        labels = {row["name"]: row["class_name"] for row in csv.DictReader(stream)}
    for row in rows:
        assert labels.get(row["path"]) == {"drop": None, "": row["given_label"]}.get(row["fix"], row["fix"])
    assert any(item["code"] == "dropped" for item in manifest["data"]["ignored"]) == (rows[-1]["fix"] == "drop")
    assert manifest["leaks"]["overlap"]["exact"] == 0


@pytest.mark.slow
@pytest.mark.skipif(not TRASH.is_dir(), reason="needs the real images beside the repository")
def test_planted_faults_are_listed_and_the_fit_goes_on(tmp_path: Path) -> None:
    shutil.copytree(TRASH, tmp_path / "trash", copy_function=lambda a, b: Path(b).write_bytes(Path(a).read_bytes()))
    for folder in [tmp_path / "trash", *(tmp_path / "trash").iterdir()]:
        folder.chmod(0o755)
    shutil.make_archive(str(tmp_path / "planted"), "zip", tmp_path / "trash" / "trash")
    (tmp_path / "planted.zip").rename(tmp_path / "trash" / "glass" / "planted.jpg")
    (tmp_path / "trash" / "metal" / "empty.jpg").write_bytes(b"")
    original = sorted((tmp_path / "trash" / "paper").iterdir())[3]
    with Image.open(original) as image:
        image.convert("RGB").convert("CMYK").save(tmp_path / "trash" / "paper" / "cmyk.jpg", quality=90)
    done = transferapp("fit", "--data", tmp_path / "trash", "--out", tmp_path / "m", "--backbone", BACKBONE, "--json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert {item["name"]: item["code"] for item in manifest["data"]["ignored"]} == {
        "glass/planted.jpg": "unsupported_format",
        "metal/empty.jpg": "empty_file",
    }
    clusters = [{m["name"] for m in cluster["members"]} for cluster in manifest["data"]["findings"]["clusters"]]
    assert {f"paper/{original.name}", "paper/cmyk.jpg"} in clusters
    assert any(odd["examples"] == ["paper/cmyk.jpg"] for odd in manifest["data"]["findings"]["odd"])
    report = (tmp_path / "m" / "report.html").read_text(encoding="utf-8")
    assert "planted.jpg" in report.replace("<wbr>", "")
    with (tmp_path / "m" / "split.csv").open(encoding="utf-8", newline="") as stream:
        split = {row["name"]: row["split"] for row in csv.DictReader(stream)}
    assert split["paper/cmyk.jpg"] == split[f"paper/{original.name}"]
