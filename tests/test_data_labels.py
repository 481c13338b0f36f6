"""Do labels of every form stand beside the samples that they belong to, and are wrong ones refused?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_data_open import GREY, IMAGE

from onnxcomp.data.labels import check_labels, read_labels
from onnxcomp.data.open import open_data
from onnxcomp.errors import DataError


def test_labels_from_npy_and_csv(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.arange(10, dtype=np.int32))
    (tmp_path / "l.csv").write_text("label\n" + "\n".join(map(str, range(10))))
    (tmp_path / "plain.csv").write_text("\n".join(map(str, range(10))))
    for name in ("l.npy", "l.csv", "plain.csv"):
        dataset = open_data({"images": GREY}, [IMAGE], labels=tmp_path / name)
        assert dataset.labels.tolist() == list(range(10))


def test_labels_by_file_name_and_unreadable_images_keep_them_aligned(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(GREY[i]).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"")
    (tmp_path / "l.csv").write_text("file,label\n" + "\n".join(f"{i}.png,{10 + i}" for i in (4, 3, 2, 1, 0)))
    assert open_data(folder, [IMAGE], labels=tmp_path / "l.csv").samples().labels.tolist() == [10, 11, 13, 14]
    (tmp_path / "l.csv").write_text("0.png,1\n")
    with pytest.raises(DataError, match="4 of 5 images have no label"):
        open_data(folder, [IMAGE], labels=tmp_path / "l.csv")


@pytest.mark.parametrize("text", ["", "label\n", "1\nx\n", "1,2\n3\n", "1\nnan"])
def test_label_files_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(DataError):
        open_data({"images": GREY}, [IMAGE], labels=tmp_path / "l.csv")


def test_labels_that_do_not_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="9 labels for 10 samples"):
        open_data({"images": GREY}, [IMAGE], labels=np.arange(9))
    with pytest.raises(DataError, match="no file"):
        open_data({"images": GREY}, [IMAGE], labels=tmp_path / "none.npy")
    with pytest.raises(DataError, match="3 labels for 4 samples"):
        open_data([{"x": np.zeros((2, 1, 4, 5))}] * 2, [IMAGE], labels=np.arange(3))


def test_labels_for_whole_feeds_count_rows_or_feeds() -> None:
    feeds = [{"x": np.zeros((2, 1, 4, 5), np.float32)}] * 3
    assert open_data(feeds, [IMAGE], labels=np.arange(6)).subset([2]).labels.tolist() == [4, 5]
    assert open_data(feeds, [IMAGE], labels=np.arange(3)).subset([2]).labels.tolist() == [2]


def test_label_range_is_checked_and_counting_from_one_is_noticed() -> None:
    check_labels(np.array([0, 9]), 10)
    with pytest.raises(DataError, match="1 of 3 labels") as caught:
        check_labels(np.array([1, 10, 3]), 10)
    assert "sample 1 has the label 10" in caught.value.where and "subtract 1" in caught.value.do
    for wrong in (np.array([-1]), np.array([0.5]), np.zeros((2, 2), int)):
        with pytest.raises(DataError):
            check_labels(wrong, 10)
    assert read_labels(np.array([[1.0], [2.0]])).tolist() == [1, 2]


def test_classes_by_name_are_no_labels_and_the_row_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("file,label\na.png,cat\nb.png,dog\n")
    with pytest.raises(DataError) as caught:
        read_labels(tmp_path / "l.csv", ["a.png", "b.png"])
    assert "row 2" in caught.value.what and "no number" in caught.value.what and "0 for the first" in caught.value.do
