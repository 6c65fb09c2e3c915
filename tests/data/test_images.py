import io
import json
import pickle
import tarfile
import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from tokensieve.data import Failure, ImageSet, StreamSet, image_set, read_image
from tokensieve.errors import InputError, RecipeError


def names(dataset):
    return [dataset.path(i).rsplit("/", 1)[-1] for i in range(len(dataset))]


def labels(dataset):
    return [label for _, label in dataset]


class TestFolders:
    def test_class_folders_in_natural_order(self, save, small, tmp_path):
        for name in ("10/b.jpg", "2/a10.jpg", "2/a9.jpg", "2/deep/x.png"):
            save(name)
        found = image_set(tmp_path, small)
        assert names(found) == ["a9.jpg", "a10.jpg", "x.png", "b.jpg"]
        assert found.classes == {"2": 0, "10": 1, "deep": 2}
        assert labels(found) == [0, 0, 2, 1]
        image, label = found[0]
        assert (image.shape, image.dtype, type(label)) == ((3, 16, 16), torch.float32, int)

    def test_prepared_by_another_preprocessing_the_set_is_as_it_was(self, save, small, tmp_path):
        save("a.png")
        found = image_set(tmp_path, small)
        other = found.prepared(replace(small, input_size=(8, 24), crop_mode="squash"))
        assert (other[0][0].shape, found[0][0].shape) == ((3, 8, 24), (3, 16, 16))
        assert names(other) == names(found)

    def test_flat_folder_has_no_labels_and_extensions_have_no_case(self, save, small, tmp_path):
        for name in ("b.JPEG", "a.Png", "c.jpg"):
            save(name)
        (tmp_path / "notes.txt").write_text("not a picture")
        found = image_set(str(tmp_path), small)
        assert names(found) == ["a.Png", "b.JPEG", "c.jpg"]
        assert labels(found) == [-1, -1, -1]
        assert found.classes == {}

    def test_pictures_beside_class_folders_have_no_label(self, save, small, tmp_path):
        save("loose.jpg")
        save("cat/a.jpg")
        assert dict(zip(names(found := image_set(tmp_path, small)), labels(found), strict=True)) == {
            "loose.jpg": -1,
            "a.jpg": 0,
        }

    def test_class_index_makes_it_1000_way(self, save, small, tmp_path):
        save("set/n02/a.jpg")
        save("set/n01/a.jpg")
        index = tmp_path / "index.json"
        index.write_text(json.dumps({"wnids": ["n00", "n02", "n01"]}))
        assert labels(image_set(tmp_path / "set", small, classes=index)) == [2, 1]

    def test_unknown_class_folder_is_named(self, save, small, tmp_path):
        save("cat/a.jpg")
        save("dog/a.jpg")
        with pytest.raises(InputError, match="'dog'"):
            image_set(tmp_path, small, classes=["cat"])

    def test_limit_spreads_over_the_classes(self, save, small, tmp_path):
        for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "c/2.jpg"):
            save(name)
        assert labels(image_set(tmp_path, small, limit=3)) == [0, 1, 2]
        assert len(image_set(tmp_path, small, limit=100)) == 6
        with pytest.raises(RecipeError, match="at least 1"):
            image_set(tmp_path, small, limit=0)

    def test_can_be_sent_to_another_process(self, save, small, tmp_path):
        save("set/a/1.png", value=9)
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(tmp_path / "set", "set")
        for source in (tmp_path / "set", tmp_path / "set.tar", tmp_path / "set/a/1.png"):
            found = image_set(source, small)
            before = found[0][0]
            there = pickle.loads(pickle.dumps(found))
            assert torch.equal(there[0][0], before)
            assert there.path(0) == found.path(0)

    def test_one_file(self, save, small):
        found = image_set(save("one.jpg"), small)
        assert len(found) == 1
        assert found[0][1] == -1

    def test_folder_prefix(self, save, small, tmp_path):
        save("a.jpg")
        assert len(image_set(f"folder/{tmp_path}", small)) == 1

    def test_tar(self, save, small, tmp_path):
        for name in ("set/val/b/1.jpg", "set/val/a/1.jpg"):
            save(name)
        with tarfile.open(tmp_path / "set.tar", "w") as tar:
            tar.add(tmp_path / "set", "set")
        found = image_set(tmp_path / "set.tar", small)
        assert labels(found) == [0, 1]
        assert found.path(0).endswith("set.tar:set/val/a/1.jpg")
        assert labels(image_set(tmp_path / "set.tar", small, classes=["b", "a"])) == [1, 0]
        with pytest.raises(InputError, match="'a'"):
            image_set(tmp_path / "set.tar", small, classes=["b"])

    @pytest.mark.parametrize("content", [b"", b"no tar at all"])
    def test_broken_tar(self, content, small, tmp_path):
        (tmp_path / "set.tar").write_bytes(content)
        with pytest.raises(InputError, match=r"set\.tar"):
            image_set(tmp_path / "set.tar", small)

    def test_nothing_there(self, small, tmp_path):
        with pytest.raises(InputError, match="holds no pictures"):
            image_set(tmp_path, small)
        for missing in (tmp_path / "none", "nowhere/at/all", f"folder/{tmp_path}/none"):
            with pytest.raises(InputError, match="does not exist"):
                image_set(missing, small)


class TestPictures:
    @pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "1", "P"])
    def test_modes_become_rgb_as_pillow_converts_them(self, mode, noise, tmp_path):
        path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
        noise(mode).save(path)
        with Image.open(path) as picture:
            assert picture.mode == mode
            expected = picture.convert("RGB")
        assert read_image(path).mode == "RGB"
        assert np.array_equal(read_image(path), expected)

    def test_palette_with_alpha_drops_it_without_a_warning(self, noise, tmp_path):
        picture = noise("P")
        picture.save(tmp_path / "a.png", transparency=bytes(range(256)))
        with pytest.warns(UserWarning, match="Transparency"), Image.open(tmp_path / "a.png") as opened:
            opened.convert("RGB")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ours = read_image(tmp_path / "a.png")
        assert np.array_equal(ours, picture.convert("RGB"))

    @pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
    def test_16_bit_grey_keeps_its_upper_bits(self, name, tmp_path):
        samples = np.linspace(0, 65535, 400, dtype=np.uint16).reshape(20, 20)
        if name == "a.pgm":  # which Pillow writes from 11.1 on
            (tmp_path / name).write_bytes(b"P5 20 20 65535\n" + samples.astype(">u2").tobytes())
        else:
            Image.fromarray(samples).save(tmp_path / name)
        assert np.array_equal(np.asarray(read_image(tmp_path / name))[..., 1], samples >> 8)

    def test_samples_of_unknown_range_are_refused(self, tmp_path):
        Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
        with pytest.raises(InputError, match=r"float\.tif holds float samples"):
            read_image(tmp_path / "float.tif")
        Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(tmp_path / "int.tif")
        with pytest.raises(InputError, match="32-bit"):
            read_image(tmp_path / "int.tif")

    def test_one_pixel_is_a_picture(self, save, small):
        image, _ = image_set(save("dot.png", value=255, size=(1, 1)), small)[0]
        assert torch.equal(image, torch.ones(3, 16, 16))

    def test_a_strip_is_a_failure_like_any_other(self, save, small):
        path = save("strip.png", size=(1, 60000))
        reason = "cannot be read: The picture is too narrow to be resized and cropped: 1 x 60000 pixels"
        found = image_set(path, replace(small, input_size=(224, 224)))
        assert found.attempt(0) == Failure(str(path), reason)

    def test_open_file(self, save):
        assert read_image(io.BytesIO(save("a.png").read_bytes())).size == (20, 18)

    def test_what_is_no_picture_is_said_in_one_sentence(self, save, tmp_path):
        (tmp_path / "text.jpg").write_text("hello")
        (tmp_path / "empty.jpg").write_bytes(b"")
        whole = save("whole.jpg", size=(200, 200)).read_bytes()
        (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
        for name, words in (
            ("text.jpg", "is not a picture"),
            ("empty.jpg", "is not a picture"),
            ("cut.jpg", "cannot be decoded: .*truncated"),
            ("none.jpg", "does not exist"),
            (".", "cannot be decoded"),
        ):
            with pytest.raises(InputError, match=words) as caught:
                read_image(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path))
            assert "\n" not in str(caught.value)

    def test_a_bomb_is_a_failure_like_any_other(self, save, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(InputError, match="exceeds limit"):
            read_image(save("a.png"))

    def test_set_raises_and_attempt_reports(self, small, tmp_path):
        path = tmp_path / "text.jpg"
        path.write_text("hello")
        found = image_set(tmp_path, small)
        assert found.attempt(0) == Failure(str(path), "is not a picture that Pillow can read")
        with pytest.raises(InputError, match=r"text\.jpg is not a picture that Pillow can read\."):
            found[0]


class Reader:
    """What timm's readers look like: (file, label) by index or in a stream of (picture, label)."""

    def __init__(self, items, streamed=False):
        self.items, self.streamed = items, streamed

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]

    def __iter__(self):
        for item in self.items:
            if isinstance(item, Exception):
                raise item
            yield item


class TestTimmSets:
    @pytest.fixture
    def opens(self, monkeypatch):
        """opens(dataset): what timm's factory gives from now on; the calls it gets are listed."""
        calls = []

        def install(dataset):
            def create(name, **settings):
                calls.append((name, settings))
                if isinstance(dataset, Exception):
                    raise dataset
                return dataset

            monkeypatch.setattr(timm.data, "create_dataset", create)
            return calls

        return install

    def test_random_access(self, opens, save, small):
        good, bad = io.BytesIO(save("a.png").read_bytes()), io.BytesIO(b"text")
        calls = opens(timm.data.ImageDataset("", reader=Reader([(good, 7), (bad, 8)])))
        found = image_set("hfds/some/set", small, classes={"a": 7}, split="test", root="cache")
        assert calls == [("hfds/some/set", {"root": "cache", "split": "test", "class_map": {"a": 7}})]
        assert isinstance(found, ImageSet)
        assert found[0][1] == 7
        assert found.attempt(1) == Failure("hfds/some/set[1]", "is not a picture that Pillow can read")

    def test_stream(self, opens, noise, small):
        items = [(noise("RGB"), 3), (noise("L"), None), (noise("RGB"), 5)]
        opens(timm.data.IterableImageDataset("", reader=Reader(items)))
        found = image_set("wds/some", small, limit=2)
        assert isinstance(found, StreamSet)
        assert [label for _, label in found] == [3, -1]

    def test_stream_that_breaks_says_where(self, opens, noise, small):
        opens(timm.data.IterableImageDataset("", reader=Reader([(noise("RGB"), 3), OSError("cut\noff.")])))
        with pytest.raises(InputError, match=r"tfds/some cannot be read after 1 pictures: cut off\."):
            list(image_set("tfds/some", small))

    def test_torchvision_set(self, opens, noise, small):
        opens([(noise("L"), 4)])
        assert image_set("torch/cifar10", small)[0][1] == 4
        with pytest.raises(InputError, match="has its own class indices"):
            image_set("torch/cifar10", small, classes=["a"])

    def test_what_timm_cannot_open(self, opens, small):
        opens(ModuleNotFoundError("No module named 'datasets'"))
        with pytest.raises(InputError, match=r"hfds/some .*No module named 'datasets'\."):
            image_set("hfds/some", small)

    def test_empty(self, opens, small):
        opens(timm.data.ImageDataset("", reader=Reader([])))
        with pytest.raises(InputError, match="holds no pictures"):
            image_set("hfds/some", small)
