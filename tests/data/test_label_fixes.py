"""Label fixes: their effect, and faulty files."""

from __future__ import annotations

from pathlib import Path

import pytest

from transferapp.data.dataset import Dataset, Record
from transferapp.data.label_fixes import apply_label_fixes, check_list_target
from transferapp.errors import DataError, UsageError

DATA = Dataset(
    "insects",
    ("ant", "bee", "Käfer"),
    tuple(Record(f"/x/{n}", n, label) for n, label in (("ant/1.jpg", 0), ("ant/2, old.jpg", 0), ("bee/1.jpg", 1))),
)
HEADER = "path,given_label,suggested_label,confidence,fix\n"


def fixed(folder: Path, text: str | bytes) -> Dataset:
    file = folder / "labels.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return apply_label_fixes(DATA, file)


def labels(dataset: Dataset) -> dict[str, str]:
    return {record.name: dataset.class_names[record.label] for record in dataset.records}


def test_a_class_relabels_drop_leaves_out_and_nothing_keeps(tmp_path: Path) -> None:
    result = fixed(
        tmp_path, HEADER + 'ant/1.jpg,ant,bee,0.9,bee\n"ant/2, old.jpg",ant,bee,0.8,drop\nbee/1.jpg,bee,ant,0.7,\n'
    )
    assert labels(result) == {"ant/1.jpg": "bee", "bee/1.jpg": "bee"}
    assert [(item.name, item.code, item.reason) for item in result.ignored] == [
        ("ant/2, old.jpg", "dropped", "left out by labels.csv")
    ]
    assert result.class_names == DATA.class_names


@pytest.mark.parametrize(
    "text",
    [
        "path,fix\nant/1.jpg,Käfer\n",
        "\ufeffPath;Given_Label;Fix\r\nant/1.jpg;ant;Käfer\r\n\r\n",
        "fix\tpath\n Ka\u0308fer \tant/1.jpg\n",
        "path,fix\nant/1.jpg,Käfer\nant/1.jpg,Käfer\nbee/1.jpg\n",
        "path,fix\nant/1.jpg,Käfer\n".encode("cp1252"),
    ],
    ids=[
        "two columns",
        "a spreadsheet's",
        "tabs, another order, decomposed",
        "the same twice, a short line",
        "Windows",
    ],
)
def test_what_spreadsheets_make_of_the_file_is_read(tmp_path: Path, text: str | bytes) -> None:
    assert labels(fixed(tmp_path, text)) == {"ant/1.jpg": "Käfer", "ant/2, old.jpg": "ant", "bee/1.jpg": "bee"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + "ant/9.jpg,,,,bee\n", "names 1 image that insects does not have: ant/9.jpg"),
        (HEADER + "ant/9.jpg,,,,\nant/8.jpg,,,,\n", "names 2 images that insects does not have: ant/8.jpg, ..."),
        (HEADER + "ant/1.jpg,,,,wasp\n", "gives ant/1.jpg the class 'wasp'.*Expected ant, bee, Käfer, or drop"),
        (HEADER + "ant/1.jpg,,,,bee\nant/1.jpg,,,,drop\n", "two fixes for ant/1.jpg, 'bee' and 'drop'"),
        ("file,fix\nant/1.jpg,bee\n", "has no column 'path'.*got file, fix"),
        ("path,label\nant/1.jpg,bee\n", "has no column 'fix'"),
        ("", "is empty"),
        (HEADER + ",ant,bee,0.9,bee\n", "names no image in line 2"),
        (b"path,fix\nant/1.jpg,\x00\n", "is not text that can be read"),
        ('path,fix\nant/1.jpg,"bee\n', "is not a well-formed table"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        fixed(tmp_path, text)
    assert caught.value.exit_code == 3
    assert "labels.csv" in str(caught.value)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    for missing in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            apply_label_fixes(DATA, missing)


def test_a_class_called_drop_cannot_be_told_from_the_word(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,fix\na,drop\n")
    data = Dataset("here", ("drop", "hop"), (Record("a", "a", 1),))
    with pytest.raises(DataError, match="both the name of a class and the word"):
        apply_label_fixes(data, tmp_path / "labels.csv")


def test_a_list_is_never_written_over_what_someone_has_made(tmp_path: Path) -> None:
    list_file = tmp_path / "labels.csv"
    check_list_target(list_file)
    list_file.write_text(HEADER + "ant/1.jpg,ant,bee,0.9,\n")
    check_list_target(list_file)
    list_file.write_text(HEADER + "ant/1.jpg,ant,bee,0.9,bee\n")
    with pytest.raises(UsageError, match="has 1 fix filled in, which would be lost"):
        check_list_target(list_file)
    list_file.write_text("path,label\nant/1.jpg,ant\n")
    with pytest.raises(UsageError, match="is not a list of labels, so it is left alone"):
        check_list_target(list_file)
    with pytest.raises(UsageError, match=r"Expected a name that ends in \.csv"):
        check_list_target(tmp_path / "labels.html")
    with pytest.raises(UsageError, match="There is no folder"):
        check_list_target(tmp_path / "nowhere" / "labels.csv")
