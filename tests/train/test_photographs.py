"""Training on photographs: the same whether interrupted or not, a teacher asked once, and what is refused."""

import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tokensieve.data import Preprocessing, image_set
from tokensieve.data import images as images_module
from tokensieve.errors import InputError, RecipeError
from tokensieve.train import photographs
from tokensieve.train.loop import make_optimizer, read_log, train
from tokensieve.train.photographs import prepare
from tokensieve.train.task import Order
from tokensieve.zoo import create

pytestmark = pytest.mark.slow

SIZE, SAMPLES = 32, 10
COLOURS = {"blue": (40, 60, 200), "green": (40, 190, 60), "red": (200, 50, 40)}


class Stopped(Exception):
    pass


def quiet(row):
    pass


def coloured(root, each, seed):
    """Noisy pictures in a folder for each colour, their left halves darker."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(each):
            pixels = np.clip(colour + generator.normal(0, 40, (44, 48, 3)), 0, 255)
            pixels[:, :24] *= 0.5
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """The two folders, which no test changes."""
    root = tmp_path_factory.mktemp("sets")
    return str(coloured(root / "train", SAMPLES, 0)), str(coloured(root / "validation", 4, 1))


@pytest.fixture
def begin(sets, tmp_path):
    """Prepare a small training of test_convnext in tmp_path: settings for 6 steps of 8 photographs, and the task."""

    def call(name="test_convnext", folder="out", workers=0, **settings):
        images, validation = settings.pop("images", sets[0]), settings.pop("validation", sets[1])
        settings = {"epochs": 1, "size": SIZE, "say": quiet, **settings}
        config, task = prepare(name, str(images), str(validation), tmp_path / folder, **settings)
        return replace(config, batch_size=8, epochs=1.6, validate_every=2, warmup=2, workers=workers), task

    return call


class TestGoingOn:
    @pytest.mark.parametrize("teacher", [None, "nano_convnet"])
    def test_an_interrupted_training_ends_as_an_uninterrupted_one(self, begin, tmp_path, teacher):
        settings = {"teacher": teacher, "args": {"drop_path_rate": 0.5}}
        whole = load_file(train(*begin(**settings), tmp_path / "whole", report=quiet))

        def stop(row):
            if row["step"] == 4:  # before this row's checkpoint is written
                raise Stopped

        with pytest.raises(Stopped):
            train(*begin(**settings), tmp_path / "parts", report=stop)
        parts = load_file(train(*begin(workers=1, **settings), tmp_path / "parts", report=quiet))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)
        losses = {
            folder: [row["loss"] for row in read_log(tmp_path / folder, "test_convnext")]
            for folder in ("whole", "parts")
        }
        assert len(losses["whole"]) == 3
        assert losses["whole"] == losses["parts"]

    def test_first_weights_do_not_depend_on_whether_the_teacher_must_be_asked(self, begin):
        (_, asked), (_, cached) = begin(teacher="nano_convnet"), begin(teacher="nano_convnet")
        first, second = asked.module.state_dict(), cached.module.state_dict()
        assert all(torch.equal(first[key], second[key]) for key in first)

    @pytest.mark.parametrize(
        "other",
        [
            {"size": 40},
            {"args": {"drop_path_rate": 0.1}},
            {"teacher": "nano_convnet"},
            {"seed": 1},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_what_was_begun_otherwise_is_not_gone_on_with(self, begin, tmp_path, other):
        train(*begin(), tmp_path / "out", report=quiet)
        with pytest.raises(InputError, match="another training"):
            train(*begin(**other), tmp_path / "out", report=quiet)

    def test_other_photographs_are_not_gone_on_with_and_moved_ones_are(self, begin, sets, tmp_path):
        train(*begin(), tmp_path / "out", report=quiet)
        moved = shutil.copytree(sets[0], tmp_path / "moved")
        train(*begin(images=moved), tmp_path / "out", report=quiet)
        Image.new("RGB", (40, 40)).save(moved / "red" / "3.png")
        with pytest.raises(InputError, match="another training"):
            train(*begin(images=moved), tmp_path / "out", report=quiet)


class TestBatches:
    def test_they_depend_on_seed_and_number_alone(self, begin):
        _, task = begin(teacher="nano_convnet")
        forwards = [task.batches(8, 6, 0)[number] for number in range(5)]
        torch.manual_seed(123)
        before = torch.get_rng_state()
        batches = begin(teacher="nano_convnet")[1].batches(8, 6, 0)
        for number in (4, 1, 3, 0, 2):
            assert all(torch.equal(a, b) for a, b in zip(forwards[number], batches[number], strict=True))
        batches = task.batches(8, 6, 1)
        assert not torch.equal(forwards[0][0], batches[0][0])
        torch.manual_seed(123)
        assert batches[0][0].dtype == torch.uint8
        assert torch.equal(torch.get_rng_state(), before), "whoever else draws is left alone"

    def test_every_epoch_shows_each_photograph_once_in_another_order(self, begin):
        _, task = begin()
        count = task.samples
        assert count == len(task.known) == 3 * SAMPLES
        # Which photograph is which shows in its label alone, once it is augmented.
        task.known = [(image, number) for number, (image, _) in enumerate(task.known)]
        shown = torch.cat([task.batches(8, 8, 0)[number][1] for number in range(8)])  # 64 places: two epochs and a bit
        assert sorted(shown[:count].tolist()) == sorted(shown[count : 2 * count].tolist()) == list(range(count))
        assert not torch.equal(shown[:count], shown[count : 2 * count])

    def test_mirrored_photographs_get_the_answer_for_the_mirror_image(self, begin):
        _, task = begin()
        taught = torch.tensor([0.0, 1.0])[None, :, None].expand(task.samples, 2, 5)
        task.taught = taught + 10 * torch.arange(task.samples)[:, None, None]
        batches = task.batches(8, 6, 0)
        batches.change = lambda picture: picture  # without crops and colours, so that the dark half stays where it is
        seen = set()
        for number in range(6):
            images, _, told = batches[number]
            left, right = (half.float().mean((1, 2, 3)) for half in images.split(images.shape[3] // 2, dim=3))
            rows = torch.tensor([batches.order[number * 8 + i] for i in range(8)])
            assert torch.equal(told[:, 0], 10 * rows + (left > right))
            seen |= set((left > right).tolist())
        assert seen == {False, True}

    def test_a_batch_opens_its_own_photographs_and_no_others(self, begin, monkeypatch):
        _, task = begin()
        opened, decode = [], images_module.decode
        monkeypatch.setattr(images_module, "decode", lambda source: opened.append(str(source)) or decode(source))
        batches = task.batches(8, 6, 0)
        assert not opened
        _, labels = batches[1]
        rows = [batches.order[8 + i] for i in range(8)]
        assert opened == [task.known.path(row) for row in rows]
        assert labels.tolist() == [task.known[row][1] for row in rows]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_photograph_that_is_gone_ends_a_training_that_then_goes_on(self, begin, sets, tmp_path, workers):
        whole = load_file(train(*begin(), tmp_path / "whole", report=quiet))
        images = shutil.copytree(sets[0], tmp_path / "copy")
        config, task = begin(images=images, workers=workers)
        gone = Path(task.known.path(Order(task.samples, 0)[8 * 3 + 3]))  # of the fourth batch
        gone.rename(tmp_path / "away.png")
        sentence = rf"{gone.name} does not exist: training stopped after step 3. Repair the file"
        with pytest.raises(InputError, match=sentence):
            train(config, task, tmp_path / "parts", report=quiet)
        (tmp_path / "away.png").rename(gone)
        parts = load_file(train(*begin(images=images, workers=workers), tmp_path / "parts", report=quiet))
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


class TestTeacher:
    def test_it_answers_about_every_photograph_and_its_mirror_image(self, begin, sets):
        _, task = begin(teacher="nano_vit")
        model, mean, std = create("nano_vit")
        own = Preprocessing.of(model, mean, std)
        images = torch.stack([image for image, _ in image_set(sets[0], own)])
        with torch.no_grad():
            expected = torch.stack([model(x).log_softmax(1) for x in (images, images.flip(3))], 1)
        torch.testing.assert_close(task.taught, expected, atol=1e-4, rtol=1e-4)
        assert task.module.second.out_features == 10

    def test_it_is_asked_once(self, begin, tmp_path):
        told = []
        _, first = begin(teacher="nano_convnet", say=told.append)
        file = tmp_path / "out" / "teacher.safetensors"
        written = file.stat().st_mtime_ns, file.read_bytes()
        _, second = begin(teacher="nano_convnet", say=told.append, size=40)
        assert sum("running the teacher" in sentence for sentence in told) == 1
        assert torch.equal(first.taught, second.taught)
        assert written == (file.stat().st_mtime_ns, file.read_bytes())

    def test_answers_of_another_teacher_are_refused(self, begin, tmp_path):
        begin(teacher="nano_convnet")
        with pytest.raises(InputError, match=r"teacher\.safetensors holds the targets of another teacher"):
            begin(teacher="nano_vit")
        state = {key: value.clone() for key, value in create("nano_convnet").model.state_dict().items()}
        state["fc.bias"] += 1
        save_file(state, tmp_path / "other.safetensors")
        with pytest.raises(InputError, match="another teacher"):
            begin(teacher="nano_convnet", teacher_weights=str(tmp_path / "other.safetensors"))

    def test_answers_about_other_photographs_of_the_same_names_are_refused(self, begin, tmp_path):
        begin(teacher="nano_convnet")
        before = (tmp_path / "out" / "teacher.safetensors").read_bytes()
        others = coloured(tmp_path / "others", SAMPLES, 7)
        with pytest.raises(InputError, match="of other photographs: delete it"):
            begin(teacher="nano_convnet", images=others)
        assert (tmp_path / "out" / "teacher.safetensors").read_bytes() == before

    @pytest.mark.parametrize("old", ["without a word of whose", "cut short"])
    def test_answers_of_nobody_are_refused(self, begin, tmp_path, old):
        begin(teacher="nano_convnet")
        file = tmp_path / "out" / "teacher.safetensors"
        if old == "cut short":
            file.write_bytes(file.read_bytes()[:40])
        else:
            save_file(load_file(file), file)
        with pytest.raises(InputError, match="another teacher"):
            begin(teacher="nano_convnet")

    def test_what_names_no_classes_cannot_teach(self, begin, tmp_path):
        save_file(create("fcn_resnet50", pretrained=False).model.state_dict(), tmp_path / "fcn.safetensors")
        with pytest.raises(InputError, match="fcn_resnet50 cannot be a teacher: it must be a classifier"):
            begin(teacher="fcn_resnet50", teacher_weights=str(tmp_path / "fcn.safetensors"))

    def test_its_classes_are_learnt_by_a_head_that_is_thrown_away(self, begin, tmp_path):
        config, task = begin(teacher="nano_convnet")
        batch = task.batches(8, 6, 0)[0]
        loss = task.loss(task.module, batch)
        told = -(batch[2].exp() * (task.module(task._normalise(batch[0]))[1].log_softmax(1) - batch[2])).sum(1).mean()
        assert loss.value.item() == pytest.approx((loss.logged["image_loss"] + told).item(), rel=1e-4)
        assert not any("second" in key for key in load_file(train(config, task, tmp_path, report=quiet)))


class TestRefusals:
    def refuse(self, begin, tmp_path, sentence, error=InputError, **settings):
        with pytest.raises(error, match=sentence):
            begin(teacher="nano_convnet", **settings)
        assert not (tmp_path / "out").exists(), "nothing is written, nobody is asked"

    def test_a_broken_picture(self, begin, sets, tmp_path):
        broken = shutil.copytree(sets[0], tmp_path / "broken")
        (broken / "green" / "5.png").write_text("not a picture")
        self.refuse(begin, tmp_path, r"green/5\.png is not a picture .*repair or remove it", images=broken)
        self.refuse(begin, tmp_path, r"green/5\.png is not a picture .*repair or remove it", validation=broken)

    def test_a_picture_outside_of_class_folders(self, begin, sets, tmp_path):
        loose = shutil.copytree(sets[0], tmp_path / "loose")
        Image.new("RGB", (40, 40)).save(loose / "stray.png")
        self.refuse(begin, tmp_path, r"stray\.png is not in a class folder", images=loose)

    def test_other_class_folders(self, begin, sets, tmp_path):
        other = shutil.copytree(sets[1], tmp_path / "other")
        (other / "green").rename(other / "greenish")
        self.refuse(begin, tmp_path, "must have the same class folders: only one has 'green'", validation=other)

    def test_no_class_folders(self, begin, sets, tmp_path):
        self.refuse(begin, tmp_path, "red has no class folders", images=f"{sets[0]}/red")

    @pytest.mark.parametrize("source", ["scenes", "nowhere", "picture.png", "hfds/some/set"])
    def test_what_is_no_folder_and_no_tar(self, begin, tmp_path, monkeypatch, source):
        monkeypatch.chdir(tmp_path)
        Image.new("RGB", (40, 40)).save("picture.png")
        self.refuse(begin, tmp_path, f"{re.escape(source)} must be a folder, or a tar", images=source)

    def test_a_model_that_is_no_timm_classifier(self, begin, tmp_path):
        sentence = "NanoConvNet cannot be trained on photographs: it is not a timm classifier"
        self.refuse(begin, tmp_path, sentence, name="nano_convnet")

    def test_an_unknown_model(self, begin, tmp_path):
        self.refuse(begin, tmp_path, "knows a model 'nano_convnex'; the nearest", RecipeError, name="nano_convnex")
        with pytest.raises(RecipeError, match="knows a model 'nano_vitt'"):
            begin(teacher="nano_vitt")

    def test_a_size_that_the_model_does_not_read(self, begin, tmp_path):
        name = "vit_tiny_patch16_224"
        self.refuse(begin, tmp_path, name + r' cannot .* 32 x 32 .*\{"img_size": 32\}', name=name)
        _, task = begin(name, folder="fits", args={"img_size": SIZE})
        assert task.name == name

    @pytest.mark.parametrize(
        ("args", "sentence", "error"),
        [
            ({"num_classes": 7}, "leave it out", RecipeError),
            ({"nonsense": 7}, "cannot be created with the arguments .*nonsense", RecipeError),
            ({"in_chans": 1}, "test_convnext cannot be trained on photographs of 32 x 32", InputError),
        ],
    )
    def test_arguments_that_make_no_sense(self, begin, tmp_path, args, sentence, error):
        self.refuse(begin, tmp_path, sentence, error, args=args)


def test_a_tar_teaches_what_its_folder_teaches(begin, sets, tmp_path):
    for source, name in zip(sets, ("train", "validation"), strict=True):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            tar.add(source, name)
    packed = {"images": tmp_path / "train.tar", "validation": tmp_path / "validation.tar"}
    (config, folder), (packed_config, tar) = begin(teacher="nano_convnet"), begin(teacher="nano_convnet", **packed)
    assert (config, folder.identity) == (packed_config, tar.identity)
    for one, other in zip(folder.batches(8, 6, 0)[2], tar.batches(8, 6, 0)[2], strict=True):
        assert torch.equal(one, other)
    assert folder.evaluate(folder.module) == tar.evaluate(tar.module)
    (tmp_path / "train.tar").write_bytes(b"no tar at all")
    with pytest.raises(InputError, match="can be listed"):
        begin(**packed)


def test_a_training_goes_through_the_photographs_as_often_as_asked(sets, tmp_path):
    config, task = prepare("test_convnext", *sets, tmp_path, epochs=30, size=SIZE, say=quiet)
    assert config.steps(task.samples) == 30 * 3 * SAMPLES // photographs.BATCH
    assert len(task.unseen) == 12
    assert json.loads(re.search(r"args (\{.*?\})", task.identity)[1]) == {}


def test_rates_fall_from_layer_to_layer_of_the_model_and_the_second_head_learns_like_the_last(begin):
    config, task = begin("test_vit", args={"img_size": SIZE}, teacher="nano_convnet")
    pupil, scale = task.module, {}
    for group in make_optimizer(pupil, replace(config, layer_decay=0.5)).param_groups:
        scale |= {id(parameter): group["lr_scale"] for parameter in group["params"]}
    rates = [scale[id(block.norm1.weight)] for block in pupil.model.blocks]
    assert rates == [rates[-1] * 0.5 ** (len(rates) - 1 - i) for i in range(len(rates))]
    assert scale[id(pupil.model.cls_token)] < rates[0]
    assert scale[id(pupil.model.head.weight)] == scale[id(pupil.second.weight)] == 1


def test_the_pupil_answers_as_the_model_does(begin):
    """Head by head, or what is trained would not be what is saved."""
    for name, args in (("nano_convnext", {}), ("test_vit", {"img_size": SIZE}), ("test_resnet", {})):
        _, task = begin(name, args=args)
        pupil, images = task.module.eval(), torch.rand(2, 3, SIZE, SIZE)
        with torch.no_grad():
            assert torch.equal(pupil(images)[0], pupil.model(images))


def test_the_loss_falls_and_the_weights_load(begin, tmp_path):
    config, task = begin("nano_convnext", teacher="nano_convnet")
    config = replace(config, batch_size=16, epochs=16 * 24 / 30, validate_every=6, warmup=4)
    weights = train(config, task, tmp_path / "out", report=quiet)
    rows = read_log(tmp_path / "out", "nano_convnext")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert rows[-1]["validation_top1"] > 60
    model, mean, _ = create("nano_convnext", weights=weights, args={"num_classes": 3})
    assert mean == (0.5, 0.5, 0.5)
    task.module.model = model
    right = task.evaluate(task.module)["validation_top1"]
    assert right == pytest.approx(rows[-1]["validation_top1"], abs=10)  # half precision, 12 pictures
