"""`tokensieve train`: what it writes, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tokensieve.zoo import create

pytestmark = pytest.mark.slow


def test_it_trains_a_bundled_model_and_tells_how_far_it_is(run, tmp_path):
    folder = tmp_path / "nano"
    result = run("train", "nano", "--only", "nano_convnet", "--scenes", 64, "--workers", 0, "--out", folder, "--json")
    assert result.code == 0
    (trained,) = json.loads(result.out)["trained"]
    assert trained["model"] == "nano_convnet"
    assert trained["plan"]["images"] == 64
    assert trained["log"][-1]["images"] == 64
    assert "nano_convnet step 1 of 1" in result.err
    assert {path.name for path in folder.iterdir()} == {
        "nano_convnet.safetensors",
        "nano_convnet.csv",
        "nano_convnet.checkpoint.pt",
    }
    again = run("train", "nano", "--only", "nano_convnet", "--scenes", 64, "--workers", 0, "--out", folder)
    assert again.code == 0, "a finished training has nothing left to do"
    assert "nano_convnet.safetensors" in again.out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nanno"], "There is no bundled model 'nanno' to train; the nearest are nano, nano_video"),
        (
            ["nano", "--only", "vit"],
            "--only must be one of nano_convnet, nano_vit, nano_convnext, nano_segmenter, not 'vit'",
        ),
        (["nano", "--scenes", "0"], "Invalid value for '--scenes'"),
        (["nano", "--epochs", "3"], "--epochs needs --images"),
        (["nano", "--teacher", "nano_vit"], "--teacher needs --images"),
        (["test_vit"], "tokensieve train nano, or a model's name with --images and --validation"),
        (["test_vit", "--images", "."], "needs --images and --validation"),
        (["test_vit", "--images", ".", "--validation", ".", "--scenes", "64"], "without --only and --scenes"),
        (
            ["test_vit", "--images", ".", "--validation", ".", "--teacher-weights", "w.pt"],
            "--teacher-weights needs --teacher",
        ),
        (["test_vit", "--images", "nowhere", "--validation", "."], "nowhere must be a folder, or a tar"),
    ],
)
def test_what_cannot_be_trained_is_refused(refused, arguments, sentence):
    assert sentence in refused("train", *arguments)


def test_another_plan_in_the_same_folder_is_refused_and_nothing_is_lost(run, refused, tmp_path):
    options = ["--only", "nano_convnet", "--workers", 0, "--out", tmp_path]
    assert run("train", "nano", "--scenes", 64, *options).code == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "another training" in refused("train", "nano", "--scenes", 128, *options)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


@pytest.fixture
def sets(tmp_path):
    """Photographs of two classes to learn from and to look at, as options, with a folder for what is made of them."""
    generator = np.random.default_rng(0)
    for name in ("train", "validation"):
        for label, colour in (("blue", (40, 60, 200)), ("red", (200, 50, 40))):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(4):
                pixels = np.clip(colour + generator.normal(0, 30, (36, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / name / label / f"{i}.png")
    folders = ["--images", tmp_path / "train", "--validation", tmp_path / "validation", "--out", tmp_path / "out"]
    return [*folders, "--size", 32, "--epochs", 16, "--workers", 0]


def test_it_trains_a_model_on_photographs_and_a_second_call_finds_it_done(run, sets, tmp_path):
    teacher = ["--teacher", "nano_convnet", "--args", '{"drop_path_rate": 0.1}']
    result = run("train", "test_convnext", *sets, *teacher, "--json")
    assert result.code == 0
    (trained,) = json.loads(result.out)["trained"]
    assert trained["plan"]["images"] == 16 * 8
    assert [row["step"] for row in trained["log"]] == [1, 2]
    assert "running the teacher on 8 photographs" in result.err
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    made = {f"test_convnext.{ending}" for ending in ("safetensors", "csv", "checkpoint.pt")}
    assert files.keys() == made | {"teacher.safetensors"}
    create("test_convnext", weights=trained["weights"], args={"num_classes": 2})
    again = run("train", "test_convnext", *sets, *teacher)
    assert again.code == 0
    assert "asking" not in again.err
    assert "step" not in again.err
    assert "test_convnext.safetensors" in again.out.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nano_convnet"], "NanoConvNet cannot be trained on photographs: it is not a timm classifier."),
        (["nano"], "Neither timm nor torchvision knows a model 'nano'"),
        (["tset_convnext"], "knows a model 'tset_convnext'; the nearest"),
        (["test_convnext", "--args", "{depth"], "--args is not JSON"),
        (["test_convnext", "--args", ""], "--args is not JSON"),
        (["test_convnext", "--args", "[1]"], "--args must be a JSON object"),
        (["test_convnext", "--args", '{"num_classes": 9}'], "leave it out"),
        (["test_convnext", "--args", '{"nonsense": 9}'], "cannot be created with the arguments"),
        (["vit_tiny_patch16_224"], 'give another size, or arguments such as {"img_size": 32}.'),
        (["test_convnext", "--teacher", "nano_convnet", "--teacher-weights", "none.pt"], "There is no weights file"),
    ],
)
def test_what_cannot_be_learnt_from_photographs_is_refused(refused, sets, tmp_path, arguments, sentence):
    assert sentence in refused("train", *arguments, *sets)
    assert not (tmp_path / "out").exists()


def test_what_others_answered_and_other_photographs_are_refused_and_nothing_is_lost(run, sets, tmp_path):
    assert run("train", "test_convnext", *sets, "--teacher", "nano_convnet").code == 0
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def refuse(sentence, *options):
        result = run("train", "test_convnext", *sets, *options)
        assert (result.code, result.out) == (2, "")
        assert sentence in result.err.splitlines()[-1]
        assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    refuse("targets of another teacher", "--teacher", "nano_vit")
    refuse("belongs to another training")
    refuse("belongs to another training", "--teacher", "nano_convnet", "--size", 40)
    shutil.copy(tmp_path / "train" / "red" / "0.png", tmp_path / "train" / "red" / "1.png")
    refuse("or of other photographs", "--teacher", "nano_convnet")
    (tmp_path / "train" / "red" / "1.png").write_text("not a picture")
    refuse("red/1.png is not a picture that Pillow can read: repair or remove it", "--teacher", "nano_convnet")
