"""What sources hold, and what their items are called."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from tests.oddities import packed
from tokensieve.data import Failure, Preprocessing
from tokensieve.errors import InputError
from tokensieve.jobs.sources import SourceSettings, fingerprint, open_items

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
NAMES = ["cat/0.png", "cat/2.png", "dog/1.png", "dog/3.png"]


def opened(*sources, **settings):
    reads = Preprocessing((16, 16), (0.5,) * 3, (0.5,) * 3)
    return open_items([str(source) for source in sources], reads, SourceSettings(**settings))


def ids(items):
    return [items.path(index) for index in range(len(items))]


def same(items, others):
    """Whether both hold the same pictures in the same order."""
    assert len(items) == len(others)
    return all(bool((items[i][0] == others[i][0]).all()) for i in range(len(items)))


def test_a_folder_and_its_tar_have_the_same_items(photos, tmp_path):
    root = photos(4)
    folder = opened(root)
    assert ids(folder) == NAMES
    tar = opened(packed(root, tmp_path / "photos.tar"))
    assert ids(tar) == [f"photos/{name}" for name in NAMES]
    assert same(folder, tar)


def test_a_webdataset_tar(tmp_path, photos):
    root = photos(2)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for key, name in (("0001", "cat/0.png"), ("0002", "dog/1.png")):
            tar.add(root / name, f"{key}.png")
            info = tarfile.TarInfo(f"{key}.json")
            info.size = 2
            tar.addfile(info, io.BytesIO(b"{}"))
    items = opened(tmp_path / "shard.tar")
    assert ids(items) == ["0001.png", "0002.png"]
    assert same(items, opened(root))
    assert [skipped.reason for skipped in items.skipped] == [".json"] * 2


def test_several_sources_are_told_apart_by_what_they_do_not_share(photos):
    one, two = photos(2, name="one"), photos(2, name="two")
    assert ids(opened(one, two)) == ["one/cat/0.png", "one/dog/1.png", "two/cat/0.png", "two/dog/1.png"]
    assert ids(opened(one / "cat" / "0.png", one / "dog" / "1.png")) == ["cat/0.png", "dog/1.png"]
    assert ids(opened(one / "cat" / "0.png")) == ["0.png"]


def test_an_item_that_is_there_twice_is_refused(photos):
    root = photos(2)
    with pytest.raises(InputError, match=r"Two items have the id cat/0\.png"):
        opened(root, root / "cat")


def test_a_list(photos, tmp_path):
    root = photos(4)
    (tmp_path / "list.txt").write_text("photos/dog/3.png\nphotos/cat/0.png\nphotos/gone.png\n")
    items = opened(tmp_path / "list.txt")
    assert ids(items) == ["photos/dog/3.png", "photos/cat/0.png", "photos/gone.png"]
    assert (items[0][0] == opened(root)[3][0]).all()
    assert items.attempt(2) == Failure("photos/gone.png", "does not exist")
    (tmp_path / "other.csv").write_text("path,label\ncat/0.png,cat\n")
    assert ids(opened(tmp_path / "other.csv", root=str(root))) == ["cat/0.png"]


def tables(root, folder):
    """Two Parquet files of the pictures below `root`: bytes, and Hugging Face's structs, in groups of one row."""
    content = [(root / name).read_bytes() for name in NAMES]
    folder.mkdir()
    first = pyarrow.table({"key": ["a", "b"], "image": [{"bytes": each, "path": None} for each in content[:2]]})
    parquet.write_table(first, folder / "0.parquet", row_group_size=1)
    parquet.write_table(pyarrow.table({"key": ["c", "d"], "jpg": content[2:]}), folder / "1.parquet")
    return folder


def test_tables_of_pictures(photos, tmp_path):
    root = photos(4)
    folder = tables(root, tmp_path / "tables")
    items = opened(folder)
    assert ids(items) == ["0.parquet#0", "0.parquet#1", "1.parquet#0", "1.parquet#1"]
    assert same(items, opened(root))
    assert ids(opened(folder, id_column="key")) == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match=r"has no column 'keys'; the nearest is key"):
        opened(folder / "0.parquet", id_column="keys")
    with pytest.raises(InputError, match="has no column 'image': it has key, jpg"):
        opened(folder / "1.parquet", image_column="image")


def test_an_empty_cell_is_a_failure(tmp_path):
    parquet.write_table(pyarrow.table({"image": pyarrow.array([None], pyarrow.binary())}), tmp_path / "a.parquet")
    assert opened(tmp_path / "a.parquet").attempt(0) == Failure("a.parquet#0", "is an empty cell")


@pytest.mark.slow  # the library takes its time to load
def test_a_folder_that_datasets_saved(photos, tmp_path):
    datasets = pytest.importorskip("datasets")
    root = photos(4)
    content = [{"bytes": (root / name).read_bytes(), "path": None} for name in NAMES]
    features = datasets.Features({"image": datasets.Image(), "key": datasets.Value("string")})
    table = datasets.Dataset.from_dict({"image": content, "key": list("abcd")}, features=features)
    table.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": table}).save_to_disk(tmp_path / "many")
    assert ids(opened(tmp_path / "one")) == ["0", "1", "2", "3"]
    assert same(opened(tmp_path / "one"), opened(root))
    assert ids(opened(tmp_path / "many", split="test", id_column="key")) == list("abcd")
    with pytest.raises(InputError, match="has no column 'train'"):
        opened(tmp_path / "many")


def test_stores(photos, tmp_path):
    import fsspec

    root = photos(4)
    store = fsspec.filesystem("memory")
    store.put(str(root), "/sources/photos", recursive=True)
    store.put_file(str(packed(root, tmp_path / "photos.tar")), "/sources/photos.tar")
    store.put(str(tables(root, tmp_path / "tables")), "/sources/tables", recursive=True)
    store.pipe_file("/sources/list.txt", b"photos/dog/3.png\n")
    store.pipe_file("/sources/photos/note.txt", b"")
    folder = opened("memory://sources/photos")
    assert ids(folder) == NAMES
    assert [skipped.reason for skipped in folder.skipped] == [".txt"]
    assert same(folder, opened(root))
    assert ids(opened("memory://sources/photos.tar")) == [f"photos/{name}" for name in NAMES]
    assert same(opened("memory://sources/photos.tar"), folder)
    assert same(opened("memory://sources/tables"), folder)
    assert (opened("memory://sources/list.txt")[0][0] == folder[3][0]).all()
    assert opened("memory://sources/list.txt", "memory://sources/photos/cat").path(1).endswith("photos/cat/0.png")
    with pytest.raises(InputError, match="holds no pictures"):
        opened("memory://sources/nowhere")
    with pytest.raises(InputError, match="cannot be used"):
        opened("nonsense://bucket/photos")


def test_what_cannot_be_read_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="does not exist: give a folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(InputError, match="can only be read from its beginning"):
        opened("wds/somebody/something")
    (tmp_path / "bad.parquet").write_bytes(b"text")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        opened(tmp_path / "bad.parquet")
    parquet.write_table(pyarrow.table({"number": [1]}), tmp_path / "numbers.parquet")
    with pytest.raises(InputError, match="no column that looks like pictures among number"):
        opened(tmp_path / "numbers.parquet")


def test_a_limit_is_spread_and_the_fingerprint_follows_names(photos):
    root = photos(8)
    items, few = opened(root), opened(root, limit=2)
    assert ids(few) == ["cat/0.png", "dog/1.png"]
    assert fingerprint(few) != fingerprint(items)
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(root / "cat" / "0.png")
    assert fingerprint(opened(root)) == fingerprint(items)


def test_generated_pictures():
    assert ids(opened("scenes", limit=2)) == ["0", "1"]
