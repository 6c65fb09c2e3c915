"""Folders and tars by the same rules: what is a class, what is read, and what is skipped."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from tests.oddities import ODDITIES, base, odd_folder, packed, photo, place
from tokensieve.data import Failure, image_set, load_batches, read_image
from tokensieve.data.scanning import FORMATS, picture_suffixes
from tokensieve.errors import InputError


def kinds(found):
    return dict(Counter(each.reason for each in found.skipped))


def notes(found):
    """Without the source that each begins with."""
    return [note.split(": ", 1)[1] for note in found.notes]


def labels(found):
    return {re.split("[:/]set/", found.path(i))[-1]: found.items.labels[i] for i in range(len(found))}


@pytest.fixture
def root(tmp_path):
    return tmp_path / "set"


@pytest.fixture(params=["folder", "tar"])
def opened(request, root, small, tmp_path):
    """opened(classes=None): what is in `root`, or in a tar of it."""

    def call(**settings):
        return image_set(root if request.param == "folder" else packed(root, tmp_path / "set.tar"), small, **settings)

    return call


@pytest.mark.parametrize("oddity", [*ODDITIES, ()], ids=lambda oddity: oddity or "all")
def test_each_oddity_gives_what_it_must(opened, root, oddity):
    expected = odd_folder(root, *([oddity] if oddity else ()))
    found = opened()
    batches = load_batches(found, 8)
    assert sum(len(batch.images) for batch in batches) == expected.read
    assert len(batches.failures) == expected.failed
    assert found.total == expected.read + expected.failed
    assert kinds(found) == expected.skipped
    assert found.classes == {name: i for i, name in enumerate(expected.classes)}
    for i in range(len(found)):
        folder, label = found.path(i).split("/")[-2], found.attempt(i)
        assert isinstance(label, Failure) or label[1] == found.classes.get(folder, -1)


class TestClasses:
    def test_hidden_folders_are_none(self, opened, root):
        for name in ("a/0", "b/0", "c/0", "c/.ipynb_checkpoints/0", ".git/0", ".thumbnails/x/0", "__MACOSX/a/0"):
            place(root / f"{name}.png")
        place(root / "a" / "._0.png", b"\0")
        found = opened()
        assert found.classes == {"a": 0, "b": 1, "c": 2}
        assert labels(found) == {"a/0.png": 0, "b/0.png": 1, "c/0.png": 2}
        assert kinds(found) == {"hidden folder": 4, "hidden file": 1}

    def test_a_folder_without_pictures_keeps_its_number(self, opened, root):
        place(root / "a" / "0.png")
        (root / "b" / "empty" / "below").mkdir(parents=True)
        place(root / "c" / "notes.txt", b"text")
        place(root / "d" / "0.png")
        found = opened()
        assert found.classes == {"a": 0, "b": 1, "c": 2, "d": 3}
        assert labels(found) == {"a/0.png": 0, "d/0.png": 3}
        assert notes(found) == ["2 class folders hold no picture and keep their numbers: b, c."]

    def test_only_beside_other_classes(self, opened, root):
        """A folder of metadata deeper down, or in a class folder, is none."""
        for name in ("val/a/0.png", "val/b/0.png", "val/b/class/x.png"):
            place(root / name)
        (root / "val" / "b" / "beside").mkdir()
        place(root / "meta" / "deep" / "boxes.xml", b"text")
        found = opened()
        assert found.classes == {"a": 0, "b": 1, "class": 2}
        assert kinds(found) == {"folder without pictures": 2, ".xml": 1}

    def test_a_flat_folder_stays_flat(self, opened, root):
        place(root / "0.png")
        (root / "empty").mkdir()
        found = opened()
        assert (found.classes, labels(found)) == ({}, {"0.png": -1})
        assert kinds(found) == {"folder without pictures": 1}

    def test_with_a_class_index_only_folders_with_pictures_must_be_named(self, opened, root):
        place(root / "n02" / "0.png")
        place(root / ".git" / "0.png")
        (root / "other").mkdir()
        found = opened(classes=["n01", "n02"])
        assert labels(found) == {"n02/0.png": 1}
        assert notes(found) == ["the class folder other holds no picture."]

    def test_what_changes_labels_is_said(self, opened, root):
        for name in ("x/img/0.png", "y/img/0.png", "z/0.png", "z/more/0.png", "loose.png", "z/0.gif"):
            place(root / name)
        (root / "none").mkdir()
        assert notes(opened()) == [
            "the class folder none holds no picture; it stays class 2.",
            "2 folders are one class, 'img': x/img, y/img.",
            "a folder inside a class folder is a class of its own, by its own name: z/more.",
            "1 of 6 pictures are in no class folder and have no label.",
            "only the first frame is read of 1 .gif.",
        ]

    def test_how_many_have_no_label_is_known_before_they_are_read(self, opened, root):
        base(root)
        place(root / "z.png")
        assert opened().unlabelled == 1
        assert opened(limit=2).unlabelled == 0

    def test_odd_digits_in_names_are_sorted(self, opened, root):
        for name in ("²", "10", "2", "a²"):
            place(root / name / "0.png")
        assert list(opened().classes) == ["2", "10", "a²", "²"]


class TestNothingToRead:
    def test_says_what_there_was(self, root, small):
        place(root / ".git" / "0.png")
        place(root / "a" / "clip.mp4", b"text")
        with pytest.raises(
            InputError, match=r"set holds no pictures \(hidden folder 1, \.mp4 1\)\. Extensions that are read: \.apng"
        ):
            image_set(root, small)

    def test_an_unreadable_root(self, root, small, monkeypatch):
        base(root)
        monkeypatch.setattr(os, "scandir", denied(os.scandir, root))
        with pytest.raises(InputError, match=r"set cannot be opened: Permission denied\."):
            image_set(root, small)


def denied(call, *paths):
    """`call`, but not for these paths: permissions do not hold for a superuser, who may well run the tests."""

    def wrapped(path, *rest, **settings):
        if str(path) in map(str, paths):
            raise PermissionError(13, "Permission denied", str(path))
        return call(path, *rest, **settings)

    return wrapped


class TestPermissions:
    def test_a_folder_keeps_its_number_and_is_named(self, root, small, monkeypatch):
        for name in ("a", "b", "c"):
            place(root / name / "0.png")
        monkeypatch.setattr(os, "scandir", denied(os.scandir, root / "b"))
        found = image_set(root, small)
        assert labels(found) == {"a/0.png": 0, "c/0.png": 2}
        assert kinds(found) == {"folder that cannot be opened": 1}
        assert found.notes == (f"{root}: the class folder b holds no picture; it stays class 1.",)

    def test_a_file_is_a_failure(self, root, small, monkeypatch):
        base(root)
        monkeypatch.setattr(Image, "open", denied(Image.open, root / "a" / "0.png"))
        found = image_set(root, small)
        assert found.attempt(0) == Failure(str(root / "a" / "0.png"), "cannot be read: permission denied")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not hold for root")
    def test_real_ones(self, root, small):
        base(root)
        (root / "a" / "0.png").chmod(0)
        (root / "d").chmod(0)
        found = image_set(root, small)
        (root / "d").chmod(0o700)
        assert kinds(found) == {"folder that cannot be opened": 1}
        assert isinstance(found.attempt(0), Failure)


class TestLinks:
    def test_what_lies_here_comes_before_links_to_it(self, root, small):
        place(root / "z" / "0.png")
        (root / "a").symlink_to("z")
        place(root / "y" / "1.png")
        (root / "y" / "0.png").symlink_to("../z/0.png")
        found = image_set(root, small)
        assert labels(found) == {"y/1.png": 0, "z/0.png": 1}

    def test_folders_and_pictures_elsewhere_are_read(self, root, small, tmp_path):
        place(tmp_path / "pool" / "cat" / "0.png")
        place(tmp_path / "pool" / "1.png")
        place(root / "dog" / "0.png")
        (root / "cat").symlink_to(tmp_path / "pool" / "cat")
        (root / "dog" / "1.png").symlink_to(tmp_path / "pool" / "1.png")
        (root / "dog" / "2.png").symlink_to(tmp_path / "pool" / "1.png")
        found = image_set(root, small)
        assert labels(found) == {"cat/0.png": 0, "dog/0.png": 1, "dog/1.png": 1, "dog/2.png": 1}

    def test_loops_through_folders_elsewhere_end(self, root, small, tmp_path):
        for one, other in (("x", "y"), ("y", "x")):
            place(tmp_path / one / "0.png")
            (tmp_path / one / "on").symlink_to(tmp_path / other)
        root.mkdir()
        (root / "x").symlink_to(tmp_path / "x")
        (root / "above").symlink_to(tmp_path)
        found = image_set(root, small)
        assert sorted(labels(found)) == ["x/0.png", "x/on/0.png"]
        assert kinds(found) == {"link to a folder above it": 1, "folder that is read already": 1}

    def test_a_link_to_itself_is_a_failure(self, opened, root):
        base(root)
        (root / "a" / "self.png").symlink_to("self.png")
        found = opened()
        assert isinstance(found.attempt(2), Failure)
        assert found.total == 5

    def test_links_to_hidden_pictures_are_read(self, opened, root):
        place(root / ".store" / "0.png")
        place(root / "a" / "1.png")
        (root / "a" / "0.png").symlink_to("../.store/0.png")
        (root / "a" / "2.png").symlink_to("0.png")
        found = opened()
        assert not any(isinstance(found.attempt(i), Failure) for i in range(3))
        assert labels(found) == {"a/0.png": 0, "a/1.png": 0, "a/2.png": 0}


class TestTars:
    def write(self, path, members, mode="w"):
        with tarfile.open(path, mode) as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)
                if isinstance(content, tuple):
                    info.type, info.linkname = content
                    tar.addfile(info)
                elif content is None:
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                else:
                    info.size = len(content)
                    tar.addfile(info, BytesIO(content))
        return path

    @pytest.fixture
    def png(self):
        data = BytesIO()
        photo().save(data, "PNG")
        return data.getvalue()

    @pytest.fixture
    def other(self):
        data = BytesIO()
        Image.new("RGB", (20, 20), "white").save(data, "PNG")
        return data.getvalue()

    def opened(self, path, small, **settings):
        found = image_set(path, small, **settings)
        return {found.path(i).split(".tar:")[1]: found.items.labels[i] for i in range(len(found))}, found

    def test_a_tar_of_a_flat_folder_is_flat_unless_its_name_is_a_class(self, png, small, tmp_path):
        path = self.write(tmp_path / "x.tar", [("n02", None), ("n02/0.png", png)])
        assert self.opened(path, small)[0] == {"n02/0.png": -1}
        assert self.opened(path, small, classes=["n01", "n02"])[0] == {"n02/0.png": 1}

    def test_a_tar_of_what_is_in_a_folder_has_its_folders(self, png, small, tmp_path):
        path = self.write(tmp_path / "x.tar", [(".", None), ("./a", None), ("./a/0.png", png), ("./b", None)])
        labels, found = self.opened(path, small)
        assert labels == {"a/0.png": 0}
        assert found.classes == {"a": 0, "b": 1}

    def test_names_that_lead_nowhere_are_passed_over(self, png, small, tmp_path):
        members = [("s/a/0.png", png), ("..", png), ("/", png), ("../../s/b/0.png", png)]
        assert self.opened(self.write(tmp_path / "x.tar", members), small)[0] == {"s/a/0.png": 0, "s/b/0.png": 1}

    def test_the_last_of_one_name_counts(self, png, other, small, tmp_path):
        path = self.write(tmp_path / "x.tar", [("s/a/0.png", png), ("s/b/0.png", png)])
        self.write(path, [("s/a/0.png", other)], "a")
        labels, found = self.opened(path, small)
        assert labels == {"s/a/0.png": 0, "s/b/0.png": 1}
        assert kinds(found) == {"older version in the tar": 1}
        assert found[0][0].min() == 1, "the white one"

    def test_hard_links_are_files(self, png, small, tmp_path):
        members = [("s/a/0.png", png), ("s/b/0.png", (tarfile.LNKTYPE, "s/a/0.png"))]
        labels, found = self.opened(self.write(tmp_path / "x.tar", members), small)
        assert labels == {"s/a/0.png": 0, "s/b/0.png": 1}
        assert np.array_equal(found[0][0], found[1][0])

    def test_a_tar_of_tars(self, png, other, small, tmp_path):
        """As ImageNet comes: the name of the inner tar is the class."""
        for name, content in (("n01", png), ("n02", other)):
            self.write(tmp_path / f"{name}.tar", [(f"{name}_0.png", content), ("._x.png", b"")])
        inner = [(f"{name}.tar", (tmp_path / f"{name}.tar").read_bytes()) for name in ("n01", "n02")]
        path = self.write(tmp_path / "train.tar", [*inner, ("n03.tar", b"no tar"), ("n04.tar", b"")])
        labels, found = self.opened(path, small)
        assert labels == {"n01/n01_0.png": 0, "n02/n02_0.png": 1}
        assert kinds(found) == {"hidden file": 2, "tar that cannot be read": 2}
        assert found[1][0].min() == 1

    @pytest.mark.parametrize("target", ["/etc/passwd.png", "../../../x.png", "b/none.png"])
    def test_links_out_of_it_are_failures(self, png, small, tmp_path, target):
        members = [("s/a/0.png", png), ("s/b/0.png", png), ("s/b/1.png", (tarfile.SYMTYPE, target))]
        _, found = self.opened(self.write(tmp_path / "x.tar", members), small)
        assert found.attempt(2).reason == "does not exist"

    def test_a_picture_that_is_cut_off_is_a_failure(self, png, small, tmp_path):
        path = self.write(tmp_path / "x.tar", [("s/a/0.png", png), ("s/b/0.png", png)])
        whole = path.read_bytes()
        start = whole.rindex(b"s/b/0.png")
        path.write_bytes(whole[: start + 1024])
        with pytest.raises(InputError, match=r"x\.tar holds no pictures that can be listed: unexpected end of data"):
            image_set(path, small)


class TestFormats:
    def test_what_is_read_can_be_opened(self):
        found = picture_suffixes()
        assert {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".webp", ".jp2"} <= found
        assert not found & {".h5", ".eps", ".ps", ".pdf", ".mpg", ".fits", ".psd", ".wmf", ".txt"}
        assert all(ending == ending.lower() for ending in found)

    @pytest.mark.parametrize(("ending", "library"), [(".jp2", "jpg_2000"), (".webp", "webp")])
    def test_what_the_installed_pillow_lacks_is_skipped(self, opened, root, monkeypatch, ending, library):
        base(root)
        place(root / "a" / f"x{ending}")
        check = features.check
        monkeypatch.setattr(features, "check", lambda name: name != library and check(name))
        found = opened()
        assert (found.total, kinds(found)) == (4, {ending: 1})

    def test_avif_where_pillow_has_it(self, opened, root, monkeypatch):
        known = {end: name for end, name in Image.registered_extensions().items() if name != "AVIF"}
        base(root)
        place(root / "a" / "x.avif", b"whatever")
        monkeypatch.setattr(Image, "registered_extensions", lambda: known)
        assert kinds(opened()) == {".avif": 1}
        monkeypatch.setattr(Image, "registered_extensions", lambda: {**known, ".avif": "AVIF"})
        monkeypatch.setitem(Image.OPEN, "AVIF", Image.OPEN["PNG"])
        assert opened().total == 5

    def test_formats_of_plugins_are_read(self, opened, root, monkeypatch):
        """As those that register HEIF."""
        base(root)
        place(root / "a" / "x.heic", b"whatever")
        monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
        monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
        assert opened().total == 5
        assert "HEIF" in FORMATS

    def test_of_a_gif_the_first_frame_is_read(self, tmp_path):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert read_image(tmp_path / "a.gif").getpixel((0, 0)) == (255, 0, 0)


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(9))
    @pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tif", "a.webp"])
    def test_pictures_are_upright(self, name, orientation, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo((24, 20)).save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as picture:
            expected = ImageOps.exif_transpose(picture).convert("RGB")
        ours = read_image(tmp_path / name)
        assert ours.size == ((20, 24) if orientation > 4 else (24, 20))
        assert np.array_equal(ours, expected)

    @pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
    def test_damaged_exif_leaves_the_picture_as_it_is(self, tmp_path):
        photo().save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 9)
        assert read_image(tmp_path / "a.jpg").size == (24, 20)

    def test_pictures_of_other_readers_are_turned_too_and_only_once(self, opened, root, small):
        exif = Image.Exif()
        exif[0x0112] = 6
        place(root / "a" / "x.jpg", b"")
        photo().save(root / "a" / "x.jpg", exif=exif)
        from tokensieve.data import ImageSet

        with Image.open(root / "a" / "x.jpg") as picture:
            raw = ImageSet([(picture, 0), (ImageOps.exif_transpose(picture), 0)], small.transform(), names="x")
            assert np.array_equal(raw[0][0], image_set(root, small)[0][0])
            assert np.array_equal(raw[1][0], raw[0][0])


def test_names_that_are_no_utf8_can_be_printed(opened, root):
    base(root)
    try:
        place(root / "a" / os.fsdecode(b"caf\xe9.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    found = opened()
    assert found.path(2).encode().endswith(rb"a/caf\xe9.png")
    assert found[2][1] == 0


def test_paths_are_those_of_the_source(opened, root):
    base(root)
    assert Path(opened().path(0)).name == "0.png"
