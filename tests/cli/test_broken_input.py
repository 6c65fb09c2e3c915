"""Ten kinds of input that are broken or odd, to every command that takes them.

What cannot be used is one sentence and exit code 2, and nothing is written. What is merely unusual is read: a grey,
CMYK or palette picture, or one of a single pixel.
"""

import io
import json

import numpy as np
import pytest
import timm
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.versions

MODEL = ["--model", "test_vit", "--no-pretrained", "--threads", 1]
SOURCE = {"eval": ["--data"], "bench": ["--data"], "show": [], "demo": []}
"""Commands that read pictures, and the option, if any, that names them."""
QUICK = {
    "bench": ["--seconds", 0, "--batch", 1],
    "eval": ["--batch", 1],
    "show": ["--out", "made.html", "--out", "made.png"],
    "demo": ["--seconds", 0, "--batch", 1, "--out", "made.html", "--out", "made.png"],
    "export": ["--out", "made.onnx"],
}
COMMANDS = list(QUICK)


def picture(mode: str, size: tuple[int, int] = (48, 40)) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode != "palette":
        return image.convert(mode)
    image = image.convert("P")
    image.info["transparency"] = 3
    return image


def jpeg() -> bytes:
    data = io.BytesIO()
    picture("RGB", (200, 160)).save(data, "JPEG")
    return data.getvalue()


BROKEN = {
    "missing.jpg": (None, "does not exist"),
    "text.jpg": (b"not a picture", "is not a picture that Pillow can read"),
    "truncated.jpg": (jpeg()[:2000], "cannot be decoded"),
}
ODD = {
    "pixel.png": picture("RGB", (1, 1)),
    "grey.png": picture("L"),
    "cmyk.jpg": picture("CMYK"),
    "palette.png": picture("palette"),
}


def call(command: str, source: object = None, recipe: str = "tome(r=8)", model: list = MODEL) -> list:
    pictures = [] if source is None else [*SOURCE[command], source]
    return [command, *pictures, *model, "--recipe", recipe, *QUICK[command]]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def nothing_written(tmp_path):
    yield
    assert not list((tmp_path / "here").iterdir()), "half written"


@pytest.mark.parametrize("command", SOURCE)
@pytest.mark.parametrize("name", BROKEN)
def test_a_picture_that_cannot_be_read_is_a_sentence(refused, tmp_path, command, name, nothing_written):
    content, sentence = BROKEN[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    said = refused(*call(command, tmp_path / name))
    assert name in said
    assert sentence in said


@pytest.mark.parametrize("command", SOURCE)
@pytest.mark.parametrize("name", BROKEN)
def test_beside_good_pictures_it_is_named_and_the_rest_goes_on(run, tmp_path, command, name):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for good in ("a.png", "z.png"):
        picture("RGB").save(folder / good)
    content, _ = BROKEN[name]
    if content is None:
        (folder / name).symlink_to(tmp_path / "nowhere.jpg")
    else:
        (folder / name).write_bytes(content)
    result = run(*call(command, folder))
    assert result.code == 0
    assert name in result.err
    assert len(result.err.strip().splitlines()) == 2, "how many were left out, and this one with its reason"


@pytest.mark.parametrize("command", SOURCE)
@pytest.mark.parametrize("name", ODD)
def test_an_unusual_picture_is_read(run, tmp_path, command, name):
    ODD[name].save(tmp_path / name)
    result = run(*call(command, tmp_path / name))
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_keep_ratio_of_nothing_is_a_sentence(refused, tmp_path, command, nothing_written):
    source = picture_file(tmp_path) if command in SOURCE else None
    assert "keep must be a number in (0, 1], not 0" in refused(*call(command, source, "papr(keep=0)"))


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_model_is_a_sentence(refused, tmp_path, command, nothing_written):
    source = picture_file(tmp_path) if command in SOURCE else None
    model = ["--model", "vit_bse_patch16_224", "--no-pretrained"]
    said = refused(*call(command, source, model=model))
    assert "knows a model 'vit_bse_patch16_224'" in said
    assert "vit_base_patch16_224" in said


@pytest.mark.parametrize("command", COMMANDS)
def test_weights_of_another_model_are_a_sentence(refused, tmp_path, command, nothing_written):
    weights = tmp_path / "other.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    source = picture_file(tmp_path) if command in SOURCE else None
    said = refused(*call(command, source, model=[*MODEL, "--weights", weights]))
    assert said.startswith("Cannot load other.safetensors into test_vit: the file has no ")


@pytest.mark.parametrize("command", ["methods", "models"])
def test_words_that_nobody_knows_are_a_sentence(refused, command):
    assert "papr_" in refused(command, "papr_")


def picture_file(folder) -> object:
    path = folder / "good.png"
    picture("RGB").save(path)
    return path


def test_json_too_is_all_or_nothing(run, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"not a picture")
    result = run(*call("eval", tmp_path / "text.jpg"), "--json")
    assert (result.code, result.out) == (2, "")
    picture("L").save(tmp_path / "grey.png")
    assert json.loads(run(*call("eval", tmp_path / "grey.png"), "--json").out)["images"] == 1
