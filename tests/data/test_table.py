"""Tables of paths and labels: columns, files, rows, dialects and faults."""

from __future__ import annotations

import base64
import random
import unicodedata
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from tests.helpers.folders import paint, tree
from transferapp.data.audit import check_usable
from transferapp.data.dataset import Dataset
from transferapp.data.options import SourceOptions
from transferapp.data.table import class_order, read_table
from transferapp.errors import DataError, UsageError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six images, 000 to 005, in a folder of their own."""
    return tree(tmp_path, {"images": 6})


def read(root: Path, text: str | bytes, name: str = "labels.csv", **options: str) -> Dataset:
    data = text.encode() if isinstance(text, str) else text
    (root / name).write_bytes(data)
    return read_table(root / name, SourceOptions(**options))


def found(dataset: Dataset) -> dict[str, str]:
    """Return the class of each file, by file name."""
    return {record.path.stem: dataset.class_names[record.label] for record in dataset.records}


def codes(dataset: Dataset) -> dict[str, str]:
    return {item.name: item.code for item in dataset.ignored}


CATS_AND_DOGS = {"000": "cat", "001": "dog"}


# Columns


@pytest.mark.parametrize(
    "header",
    [
        "path,label",
        "Label,FileName",
        "image_path,class",
        "img,Category",
        "Picture,Category",
        "file,target",
        "id,breed",
        "Image ID,Class Name",
    ],
)
def test_columns_are_known_by_their_usual_names(root: Path, header: str) -> None:
    first_is_label = header.lower().startswith("label")
    rows = [("images/000.png", "cat"), ("images/001.png", "dog")]
    lines = [",".join(reversed(row) if first_is_label else row) for row in rows]
    assert found(read(root, "\n".join([header, *lines]))) == CATS_AND_DOGS


def test_other_columns_do_not_disturb_and_a_better_name_wins(root: Path) -> None:
    text = "id,width,path,label,note\n7,20,images/000.png,cat,a\n8,20,images/001.png,dog,b\n"
    assert found(read(root, text)) == CATS_AND_DOGS


def test_a_column_that_holds_image_names_is_the_path_whatever_it_is_called(root: Path) -> None:
    assert found(read(root, "Bild,Tier\nimages/000.png,cat\nimages/001.png,dog\n")) == CATS_AND_DOGS


def test_a_table_without_names_of_columns_is_understood(root: Path) -> None:
    assert found(read(root, "images/000.png,cat\nimages/001.png,dog\n")) == CATS_AND_DOGS
    text = "images/000.png,3,cat\nimages/001.png,4,dog\n"
    assert found(read(root, text, label_column="3")) == CATS_AND_DOGS


def test_the_index_that_pandas_writes_is_no_label(root: Path) -> None:
    assert found(read(root, ",path,animal\n0,images/000.png,cat\n1,images/001.png,dog\n")) == CATS_AND_DOGS


def test_columns_can_be_named(root: Path) -> None:
    text = "path,label,A,B\nx,y,images/000.png,cat\nx,y,images/001.png,dog\n"
    assert found(read(root, text, path_column="A", label_column="b")) == CATS_AND_DOGS


def test_a_column_that_was_named_and_is_not_there_is_a_usage_error(root: Path) -> None:
    with pytest.raises(UsageError, match=r"no column 'animal' \(--label-column\). Expected one of path, label"):
        read(root, "path,label\nimages/000.png,cat\n", label_column="animal")


def test_two_columns_that_could_be_the_label_are_told_of(root: Path) -> None:
    with pytest.raises(DataError, match=r"several columns that could be the label. Got label, species"):
        read(root, "path,label,species\nimages/000.png,1,cat\n")


def test_no_column_that_could_be_the_label_lists_what_there_is(root: Path) -> None:
    with pytest.raises(DataError, match=r"no column that is known to be the label.*got path, a, b.*--label-column"):
        read(root, "path,a,b\nimages/000.png,1,cat\n")
    with pytest.raises(DataError, match=r"no column that is known to be the path.*--path-column"):
        read(root, "a,b\n1,2\n")


def test_splits_are_detected_and_named_in_any_usual_way(root: Path) -> None:
    splits = ["train", "TRAINING", "Val", "validation", "test", ""]
    rows = [f"images/00{i}.png,{'ab'[i % 2]},{split}" for i, split in enumerate(splits)]
    dataset = read(root, "\n".join(["path,label,split", *rows]))
    assert dataset.given_splits == ("train", "val", "test")
    assert {r.path.stem: r.split for r in dataset.records} == dict(
        zip([f"00{i}" for i in range(6)], ["train", "train", "val", "val", "test", None], strict=True)
    )


def test_train_alone_is_no_split(root: Path) -> None:
    dataset = read(root, "path,label,split\nimages/000.png,a,train\nimages/001.png,b,train\n")
    assert dataset.given_splits == ()
    assert {record.split for record in dataset.records} == {None}


def test_a_split_column_that_holds_something_else_is_one_only_if_it_was_named(root: Path) -> None:
    text = "path,label,split\nimages/000.png,a,0\nimages/001.png,b,1\n"
    assert read(root, text).given_splits == ()
    with pytest.raises(DataError, match="splits that are not known: '0', '1'"):
        read(root, text, split_column="split")


def test_rows_of_a_split_that_nobody_knows_are_listed(root: Path) -> None:
    text = "path,label,split\nimages/000.png,a,train\nimages/001.png,b,test\nimages/002.png,b,spare\n"
    dataset = read(root, text)
    assert len(dataset) == 2
    assert codes(dataset) == {"images/002.png": "unknown_split"}


def test_groups_come_from_the_column_that_was_named(root: Path) -> None:
    text = "path,label,patient\nimages/000.png,a,P1\nimages/001.png,b,P2\nimages/002.png,a,P1\n"
    assert {r.path.stem: r.group for r in read(root, text, group_column="patient").records} == {
        "000": "P1",
        "001": "P2",
        "002": "P1",
    }
    plain = read(root, "path,label,other\nimages/000.png,a,P1\nimages/001.png,b,P2\n")
    assert {record.group for record in plain.records} == {""}


# Labels


def test_whole_numbers_keep_their_order(root: Path) -> None:
    rows = [f"images/00{i}.png,{label}" for i, label in enumerate(("10", "9", "-1", "100", "2", "9"))]
    assert read(root, "\n".join(["path,label", *rows])).class_names == ("-1", "2", "9", "10", "100")


def test_other_labels_are_in_natural_order(root: Path) -> None:
    rows = [f"images/00{i}.png,{label}" for i, label in enumerate(("b", "10", "a", "9"))]
    assert read(root, "\n".join(["path,label", *rows])).class_names == ("9", "10", "a", "b")


def test_numbers_that_a_gap_has_made_fractions_are_whole_again() -> None:
    assert class_order({"3.0", "10.", "2"}) == (["2", "3", "10"], {"3.0": "3", "10.": "10", "2": "2"})
    assert class_order({"3.5", "10"})[0] == ["3.5", "10"]
    assert class_order({"007", "7", "10"})[0] == ["007", "7", "10"]


def test_labels_survive_alphabets_spaces_quotes_and_emoji(root: Path) -> None:
    labels = ["Größe 12", "猫", "🐕 my dog", 'a"b', "x,y", "caf\u0065\u0301"]
    rows = ['images/00{}.png,"{}"'.format(i, label.replace('"', '""')) for i, label in enumerate(labels)]
    dataset = read(root, "\n".join(["path,label", *rows]))
    assert found(dataset) == {f"00{i}": unicodedata.normalize("NFC", label) for i, label in enumerate(labels)}


def test_blanks_around_labels_and_paths_do_not_count(root: Path) -> None:
    assert found(read(root, "path , label\n images/000.png , cat\nimages/001.png,dog \n")) == CATS_AND_DOGS


# Files


def test_paths_are_looked_up_beside_the_table_and_in_folders_of_images(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "Images" / "b.png", 2)
    paint(tmp_path / "train" / "c.png", 3)
    paint(tmp_path / "labels" / "d.png", 4)
    paint(tmp_path / "other" / "e.png", 5)
    (tmp_path / "away").mkdir()
    outside = paint(tmp_path / "away" / "f.png", 6)
    rows = ["a.png,x", "b.png,y", "c.png,x", "./d.png,y", "e.png,x", f"{outside},y", "other/e.png,y"]
    dataset = read(tmp_path, "\n".join(["path,label", *rows]))
    assert {record.name for record in dataset.records} == {
        "a.png", "Images/b.png", "train/c.png", "labels/d.png", "away/f.png", "other/e.png",
    }  # fmt: skip
    assert codes(dataset) == {"e.png": "missing_file"}


def test_ids_without_a_suffix_find_their_image(tmp_path: Path) -> None:
    for name in ("000bec.jpg", "1.2.3.png", "B.JPG"):
        paint(tmp_path / "train" / "x.png").rename(tmp_path / "train" / name)
    dataset = read(tmp_path, "id,breed\n000bec,cat\n1.2.3,dog\nB,cat\n")
    assert {r.path.name for r in dataset.records} == {"000bec.jpg", "1.2.3.png", "B.JPG"}


def test_paths_of_another_system_and_of_another_unicode_form_are_found(tmp_path: Path) -> None:
    paint(tmp_path / "cats" / "a.png", 1)
    paint(tmp_path / "cafe\u0301.png", 2)
    paint(tmp_path / "th\u00e9.png", 3)
    dataset = read(tmp_path, "path,label\ncats\\a.png,x\ncaf\u00e9.png,y\nthe\u0301.png,x\n")
    assert len(dataset) == 3
    assert dataset.ignored == ()


def test_what_is_wrong_with_a_row_is_listed_and_the_rest_is_read(root: Path) -> None:
    rows = [
        "images/000.png,cat",
        "images/gone.png,cat",
        "images,dog",
        ",dog",
        "images/001.png,",
        "images/002.png",
        "images/scan.dcm,dog",
        "images/\0.png,dog".replace("\0", "\x07"),
        "",
        "images/003.png,dog",
    ]
    dataset = read(root, "\n".join(["path,label", *rows]))
    assert found(dataset) == {"000": "cat", "003": "dog"}
    assert codes(dataset) == {
        "images/gone.png": "missing_file",
        "images": "missing_file",
        "labels.csv, row 5": "no_path",
        "images/001.png": "no_label",
        "images/002.png": "no_label",
        "images/scan.dcm": "unsupported_format",
        "images/\\x07.png": "missing_file",
    }
    assert "row 3 of labels.csv" in dataset.ignored[0].reason


def test_a_file_with_two_labels_is_left_out_and_says_in_which_rows(root: Path) -> None:
    rows = ["images/000.png,cat", "images/001.png,dog", "./images/000.png,dog", "images/002.png,cat"]
    dataset = read(root, "\n".join(["path,label", *rows]))
    assert found(dataset) == {"001": "dog", "002": "cat"}
    (item,) = dataset.ignored
    assert (item.name, item.code) == ("images/000.png", "conflicting_labels")
    assert item.reason == "has several labels: 'cat' (row 2), 'dog' (row 4)"


def test_links_are_followed_and_loops_among_them_are_survived(root: Path) -> None:
    (root / "images" / "link.png").symlink_to("001.png")
    (root / "images" / "loop.png").symlink_to("loop.png")
    dataset = read(root, "path,label\nimages/000.png,cat\nimages/link.png,dog\nimages/loop.png,dog\n")
    assert found(dataset) == {"000": "cat", "link": "dog"}
    assert codes(dataset) == {"images/loop.png": "missing_file"}


def test_a_row_that_is_there_twice_counts_once(root: Path) -> None:
    dataset = read(root, "path,label\nimages/000.png,cat\nimages/001.png,dog\nimages/000.png,cat\n")
    assert found(dataset) == CATS_AND_DOGS
    assert codes(dataset) == {"images/000.png": "duplicate_row"}


def test_a_table_whose_images_are_elsewhere_says_where_it_looked(root: Path) -> None:
    with pytest.raises(DataError, match=r"names no image that is there.*2 files that are not there, such as a\.png"):
        read(root, "path,label\na.png,cat\nb.png,dog\n")


def test_one_class_is_too_few(root: Path) -> None:
    with pytest.raises(DataError, match="at least two different labels, got 'cat'"):
        read(root, "path,label\nimages/000.png,cat\n")


def test_records_are_in_the_order_of_class_and_file_whatever_that_of_rows(root: Path) -> None:
    rows = [f"images/00{i}.png,{'ba'[i % 2]}" for i in (5, 2, 0, 1, 4, 3)]
    dataset = read(root, "\n".join(["path,label", *rows]))
    assert [record.path.stem for record in dataset.records] == ["001", "003", "005", "000", "002", "004"]


# How the file is written


TEXT = "path,label\nimages/000.png,Käse\nimages/001.png,Brötchen\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_encodings_are_recognized(root: Path, encoding: str, ending: str) -> None:
    dataset = read(root, TEXT.replace("\n", ending).encode(encoding))
    assert dataset.class_names == ("Brötchen", "Käse")


@pytest.mark.parametrize(
    ("encoding", "labels", "said"),
    [
        ("cp1251", ("кошка", "собака"), "Windows-1251"),
        ("cp1250", ("růže", "tulipán"), "Windows-1250"),
        ("gbk", ("异常", "正常"), "GBK"),
        ("shift_jis", ("猫", "犬"), "Shift-JIS"),
        ("big5", ("玫瑰", "鬱金香"), "Big5"),
        ("euc-kr", ("고양이", "사과"), "EUC-KR"),
        ("cp1252", ("Brötchen", "Käse"), "Windows-1252"),
    ],
)
def test_code_pages_are_guessed_and_named(root: Path, encoding: str, labels: tuple[str, str], said: str) -> None:
    rows = [f"images/{index:03}.png,{labels[index % 2]}" for index in range(6)]
    (root / "labels.csv").write_bytes("\n".join(["path,label", *rows]).encode(encoding))
    notes: list[str] = []
    dataset = read_table(root / "labels.csv", SourceOptions(), note=notes.append)
    assert set(dataset.class_names) == set(labels)
    (note,) = notes
    assert said in note
    assert "--encoding" in note
    named = read_table(root / "labels.csv", SourceOptions(encoding=encoding), note=notes.append)
    assert (named.class_names, len(notes)) == (dataset.class_names, 1)


def test_an_encoding_that_does_not_fit_is_refused(root: Path) -> None:
    (root / "labels.csv").write_bytes(TEXT.encode("cp1252"))
    with pytest.raises(DataError, match=r"labels\.csv is not text.*a table in utf-8"):
        read_table(root / "labels.csv", SourceOptions(encoding="utf-8"))
    for unknown in ("klingon", "hex"):
        with pytest.raises(UsageError, match="--encoding is not known"):
            SourceOptions(encoding=unknown)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv"])
def test_delimiters_are_recognized(root: Path, delimiter: str, name: str) -> None:
    rows = ["path,label,note", 'images/000.png,cat,"a"', 'images/001.png,dog,"b"']
    text = "\n".join(row.replace(",", delimiter) for row in rows)
    assert found(read(root, text, name)) == CATS_AND_DOGS


def test_the_line_that_excel_puts_first_is_understood(root: Path) -> None:
    assert found(read(root, "sep=;\npath;label\nimages/000.png;cat\nimages/001.png;dog\n")) == CATS_AND_DOGS


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"path,label\n", "names no image"),
        (TEXT.encode("utf-16-le"), "not text that can be read.*Save it as CSV UTF-8"),
        (b"\xff\xfepath\0", "not text that can be read"),
        (b"path,label\n\x81\x8d,\xe9\n", "not text that can be read"),
        (b'path,label\n"images/000.png,cat\nimages/001.png,dog\n', "not a well-formed table: line"),
        (b"path,label\n" + b"x" * 200_000 + b",cat\n", "a cell of more than 131,072 characters in line 2"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not text that can be read"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(root: Path, data: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        read(root, data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folders", "given"),
    [
        (("train", "test"), {"train", "test"}),
        (("./train", "valid"), {"train", "val"}),
        (("train", "train"), set()),
        (("train", "images"), set()),
        (("val", "test"), set()),
    ],
)
def test_folders_in_paths_give_the_splits(tmp_path: Path, folders: tuple[str, str], given: set[str]) -> None:
    rows = ["path,label"]
    for folder in dict.fromkeys(folders):
        tree(tmp_path, {folder: 4})
        rows += [f"{folder}/00{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(4)]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    dataset = read_table(tmp_path / "labels.csv", SourceOptions())
    assert set(dataset.given_splits) == given
    assert all((record.split is not None) == bool(given) for record in dataset.records)
    assert len(dataset) == 4 * len(set(folders))


BASE64 = base64.b64encode(random.Random(0).randbytes(3000)).decode()


@pytest.mark.parametrize(
    "cell",
    [
        f"/9j/{BASE64}",
        f"iVBORw0KGgo{BASE64}",
        f"data:image/png;base64,{BASE64}",
        str({"bytes": b"\xff\xd8\xff" * 50, "path": None}),
        str(b"\xff\xd8\xff" * 50),
        "<PIL.PngImagePlugin.PngImageFile image mode=RGB size=32x32 at 0x7F00>",
        " ".join(map(str, range(2, 255))),
    ],
    ids=["jpeg", "png", "data-url", "dictionary", "bytes", "repr", "pixels"],
)
@pytest.mark.parametrize("column", ["image", "data"])
def test_cells_with_images_are_refused_in_one_short_line(root: Path, cell: str, column: str) -> None:
    quoted = '"' + cell.replace('"', '""') + '"'
    with pytest.raises(DataError, match=f"holds the images themselves in column '{column}'") as caught:
        read(root, f"{column},label\n{quoted},cat\n{quoted},dog\n")
    assert len(str(caught.value)) < 500


def test_a_page_in_the_place_of_a_path_is_listed_by_its_ends(root: Path) -> None:
    rows = "".join(f"images/00{i}.png,{label}\n" for i, label in enumerate(("cat", "dog")))
    dataset = read(root, f"path,label\n{20 * rows}{BASE64},cat\n")
    assert found(dataset) == CATS_AND_DOGS
    (item,) = [item for item in dataset.ignored if item.code == "missing_file"]
    assert len(item.name) < 100


def test_addresses_are_to_be_downloaded(root: Path) -> None:
    with pytest.raises(DataError, match="names no image") as caught:
        read(root, "path,label\nhttps://images.test/1.jpg,cat\nhttps://images.test/2.jpg,dog\n")
    assert caught.value.hint is not None
    assert "--path-column" not in caught.value.hint


def test_an_encoding_that_breaks_late_is_noticed(root: Path) -> None:
    filler = 20 * f"images/gone.png,cat,{100_000 * 'x'}\n"
    dataset = read(
        root, (TEXT.replace("label", "label,note") + filler).encode() + "images/002.png,Müsli\n".encode("cp1252")
    )
    assert "Müsli" in dataset.class_names


# Parquet


def test_parquet_is_read_with_numbers_categories_and_gaps(root: Path) -> None:
    table = pyarrow.table(
        {
            "file": [f"images/00{i}.png" for i in range(5)],
            "label": pyarrow.array([10, 9, None, 2, 9], pyarrow.float64()),
            "split": pyarrow.array(["train", "train", "train", "test", "test"]).dictionary_encode(),
            "patient": [1, 2, 3, 1, 2],
            "box": [[1, 2]] * 5,
        }
    )
    parquet.write_table(table, root / "labels.parquet")
    dataset = read_table(root / "labels.parquet", SourceOptions(group_column="patient"))
    assert dataset.class_names == ("2", "9", "10")
    assert found(dataset) == {"000": "10", "001": "9", "003": "2", "004": "9"}
    assert codes(dataset) == {"images/002.png": "no_label"}
    assert {r.path.stem: (r.split, r.group) for r in dataset.records}["003"] == ("test", "1")


def test_parquet_without_a_column_of_paths_says_so(root: Path) -> None:
    table = pyarrow.table({"image": [[1, 2], [3, 4]], "label": [0, 1]})
    parquet.write_table(table, root / "labels.parquet")
    with pytest.raises(DataError, match="holds the images themselves"):
        read_table(root / "labels.parquet", SourceOptions())


@pytest.mark.parametrize("data", [b"", b"PAR1 and nothing more", b"path,label\n"])
def test_what_is_no_parquet_is_refused_in_one_line(root: Path, data: bytes) -> None:
    with pytest.raises(DataError, match="not a readable Parquet file") as caught:
        read(root, data, "labels.parquet")
    assert "\n" not in str(caught.value)


def test_a_parquet_file_that_is_cut_is_refused(root: Path) -> None:
    parquet.write_table(pyarrow.table({"path": ["a"] * 9999, "label": ["b"] * 9999}), root / "whole.parquet")
    data = (root / "whole.parquet").read_bytes()
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read(root, data[: len(data) // 2], "labels.parquet")


# Other forms


def test_a_table_with_one_column_a_class_is_read(root: Path) -> None:
    text = "filename, cat, dog\nimages/000.png, 1, 0\nimages/001.png, 0, 1\nimages/002.png, 0, 0\n"
    dataset = read(root, text, name="_classes.csv")
    assert found(dataset) == CATS_AND_DOGS
    assert codes(dataset) == {"images/002.png": "no_label"}


def test_a_late_row_with_two_classes_is_left_out(root: Path) -> None:
    rows = ["images/000.png,1.0,0.0", *["images/001.png,0.0,1.0"] * 25, "images/002.png,1.0,1.0"]
    dataset = read(root, "\n".join(["image,cat,dog", *rows]))
    assert found(dataset) == CATS_AND_DOGS
    assert codes(dataset)["images/002.png"] == "conflicting_labels"


def test_json_lines_are_read(root: Path) -> None:
    lines = [
        '{"file_name": "images/000.png", "label": "cat"}',
        '{"file_name": "images/001.png", "label": "dog", "a": 1}',
    ]
    assert found(read(root, "\n".join(lines), name="metadata.jsonl")) == CATS_AND_DOGS


@pytest.mark.parametrize("text", ["", "{", "[1]", "{}"])
def test_what_is_no_json_lines_is_refused(root: Path, text: str) -> None:
    with pytest.raises(DataError, match="metadata"):
        read(root, text, name="metadata.jsonl")


# Paths from elsewhere


@pytest.mark.parametrize(
    "prefix", ["/home/bob/study/images/", "C:\\study\\images\\", "../study/images/", "study/images/"]
)
def test_paths_of_another_machine_are_found_by_their_end(root: Path, prefix: str) -> None:
    text = f"path,label\n{prefix}000.png,cat\n{prefix}001.png,dog\n"
    if prefix.startswith(".."):
        with pytest.raises(DataError, match="names no image that is there"):
            read(root, text)
    else:
        assert found(read(root, text)) == CATS_AND_DOGS


def test_a_path_is_never_found_in_another_split_or_in_two_places(tmp_path: Path) -> None:
    tree(tmp_path, {"train": 1, "test": 2, "images": 1})
    paint(tmp_path / "train" / "only.png", 77)
    rows = ["/x/train/001.png,cat", "/x/unknown/000.png,cat", "/x/train/only.png,cat", "/x/test/001.png,dog"]
    dataset = read(tmp_path, "\n".join(["path,label", *rows]))
    assert found(dataset) == {"only": "cat", "001": "dog"}
    assert codes(dataset) == {"/x/train/001.png": "missing_file", "/x/unknown/000.png": "missing_file"}


def test_suffixes_may_differ_in_case(root: Path) -> None:
    assert found(read(root, "path,label\nimages/000.PNG,cat\nimages/001.Png,dog\n")) == CATS_AND_DOGS


def test_rows_without_a_file_count_as_unreadable(root: Path) -> None:
    rows = [
        *(f"images/00{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6)),
        "images/a.png,cat",
        "images/b.png,dog",
    ]
    dataset = read(root, "\n".join(["path,label", *rows]))
    with pytest.raises(DataError, match="2 of 8 images"):
        check_usable(dataset, dataset, 1)
