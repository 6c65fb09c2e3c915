"""`ModelSpec`: what it describes is what opens, here and in another process; what cannot be opened is said."""

import json
import multiprocessing
import pickle
import sys
from dataclasses import FrozenInstanceError, replace

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tokensieve import ModelSpec, PaPr, Recipe, ToMe, sieve
from tokensieve.data import Preprocessing
from tokensieve.errors import InputError, RecipeError
from tokensieve.segmentation.plan import SegmenterPlan, open_trained, plan_file
from tokensieve.zoo import file_sha256

PAPR = "papr(keep=0.5, proposal=nano_convnet) + tome(r=2)"
OWN_MODULE = """
import timm
import torch

NUMBER = 3


def build(channels=3):
    return timm.create_model("test_vit", in_chans=channels)


class Factory:
    @staticmethod
    def small():
        return timm.create_model("test_vit")


def unnormalised():
    model = timm.create_model("test_vit")
    model.pretrained_cfg = {}
    return model


def fails():
    raise OSError("the disk is full")


def no_model():
    return {"weights": torch.zeros(3)}
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "host.safetensors"
    torch.manual_seed(5)
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path


@pytest.fixture(scope="module")
def proposal(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "proposal.safetensors"
    torch.manual_seed(6)
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module of the user's, which can be imported."""
    name = f"own_models_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def answers(spec, images, threads):
    """What a worker process sends back."""
    torch.set_num_threads(threads)
    opened = spec.open()
    with torch.inference_mode():
        images = images.to(opened.dtype)
        dense, fast = opened.dense(images), opened.fast(images)
    return dense.float().numpy(), fast.float().numpy(), str(opened.fast.recipe)


@pytest.fixture(scope="module")
def in_worker():
    """Calls `answers` in another process, which shares nothing with this one but files."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        yield lambda *arguments: pool.apply(answers, arguments)


@pytest.mark.versions
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_worker_process_gives_the_same_answers_bit_for_bit(in_worker, weights, proposal, precision):
    spec = ModelSpec(
        "test_vit",
        "papr(keep=0.5, proposal=test_resnet) + tome(r=2)",
        weights=weights,
        proposal_weights=proposal,
        precision=precision,
        size=(96, 128),
    ).with_hashes()
    images = torch.randn(3, 3, 96, 128)
    dense, fast, recipe = answers(spec, images, torch.get_num_threads())
    there = in_worker(pickle.loads(pickle.dumps(spec)), images, torch.get_num_threads())
    assert (dense == there[0]).all()
    assert (fast == there[1]).all()
    assert (dense != fast).any()
    assert recipe == there[2]


def test_a_callable_and_the_recipe_of_the_commands_open_in_a_worker_too(in_worker, weights):
    spec = ModelSpec("timm:create_model", args={"model_name": "test_vit"}, weights=weights)
    images = torch.randn(2, 3, 160, 160)
    dense, fast, recipe = answers(spec, images, torch.get_num_threads())
    there = in_worker(spec, images, torch.get_num_threads())
    assert (dense == there[0]).all()
    assert (fast == there[1]).all()
    assert recipe == there[2] != ""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The file of a small segmenter, as training writes it."""
    file = tmp_path_factory.mktemp("trained") / "small.safetensors"
    plan = SegmenterPlan("test_vit", ("a", "b", "c"), "setr_naive", {"levels": [1, 3], "channels": 8}, crop=(32, 48))
    segmenter, plan = plan.build()
    save_file({key: value.contiguous() for key, value in segmenter.state_dict().items()}, file)
    plan.save(plan_file(file))
    return file


class TestTrainedSegmenters:
    def test_the_file_opens_with_the_size_and_the_normalisation_that_it_was_trained_with(self, trained):
        spec = ModelSpec(str(trained), "dtop(threshold=0.4)")
        opened, (segmenter, plan) = spec.open(), open_trained(trained)
        own = opened.preprocessing
        assert (own.input_size, own.mean, own.std) == (plan.crop, plan.mean, plan.std)
        images = torch.randn(2, 3, 32, 48)
        with torch.no_grad():
            assert torch.equal(opened.dense(images), segmenter(images))
            assert torch.equal(opened.fast(images), sieve(segmenter, "dtop(threshold=0.4)")(images))
        assert str(ModelSpec(str(trained)).open().fast.recipe) == "dtop()", "what it was trained for"
        assert ModelSpec(str(trained), size=64).open().preprocessing.input_size == (64, 64)
        random = ModelSpec(str(trained), "", pretrained=False).open().dense
        assert not torch.equal(random.backbone.pos_embed, segmenter.backbone.pos_embed)

    def test_both_files_are_named_bound_and_moved(self, trained, tmp_path):
        built = trained.with_suffix(".json")
        spec = ModelSpec(str(trained), "").with_hashes()
        assert spec.files() == [str(trained), str(built)] == list(spec.sha256)
        text = spec.to_json(folder=trained.parent)
        assert json.loads(text)["model"] == "small.safetensors"
        assert ModelSpec.from_json(text, folder=trained.parent) == spec
        assert spec.with_recipe("dtop(threshold=0.9)").sha256 == spec.sha256
        other = tmp_path / "small.safetensors"
        other.write_bytes(trained.read_bytes())
        other.with_suffix(".json").write_text(built.read_text().replace('"c"', '"d"'))
        moved = ModelSpec.from_json(text, folder=tmp_path)
        with pytest.raises(InputError, match=r"small\.json is not the file that was expected"):
            moved.open()

    def test_what_it_does_not_take_is_refused(self, trained, tmp_path):
        with pytest.raises(InputError, match=r"args cannot be given: small\.json holds the arguments of .*small"):
            ModelSpec(str(trained), "", args={"depth": 3}).open()
        with pytest.raises(InputError, match=r"There is no weights file .*absent\.safetensors"):
            ModelSpec(str(tmp_path / "absent.safetensors"), "").check()


def test_it_opens_what_sieve_makes(weights):
    opened = ModelSpec("test_vit", "tome(r=8)", weights=weights).open()
    host = timm.create_model("test_vit", num_classes=1000)
    host.load_state_dict(opened.dense.state_dict())
    images = torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.equal(opened.fast(images), sieve(host.eval(), "tome(r=8)")(images))
        assert torch.equal(opened.dense(images), host(images))
        assert torch.equal(ModelSpec("test_vit", "", weights=weights).open().fast(images), host(images))
    assert opened.fast.model is opened.dense
    assert not opened.dense.training
    assert opened.preprocessing == Preprocessing.of(host)
    assert (opened.device, opened.dtype) == (torch.device("cpu"), torch.float32)
    picture = Image.new("RGB", (300, 200), (120, 30, 60))
    assert torch.equal(opened.preprocessing.transform()(picture), Preprocessing.of(host).transform()(picture))


def test_opening_changes_nothing_of_the_process(weights, monkeypatch):
    monkeypatch.setattr("sys.argv", ["anything", "--model", "no_such_model"])
    threads, dtype, path = torch.get_num_threads(), torch.get_default_dtype(), list(sys.path)
    spec = ModelSpec("test_vit", "tome(r=8)", weights=weights, precision="bf16")
    spec.open()
    assert (torch.get_num_threads(), torch.get_default_dtype(), sys.path) == (threads, dtype, path)
    with pytest.raises(FrozenInstanceError):
        spec.recipe = ""


def test_every_setting_does_something(weights, proposal):
    base = ModelSpec("test_vit", "papr(keep=0.5, proposal=test_resnet)", weights, proposal_weights=proposal)
    images = torch.randn(2, 3, 160, 160)

    def fast(spec):
        opened = spec.open()
        with torch.inference_mode():
            return opened.fast(images.to(opened.dtype)).float()

    here = fast(base)
    with torch.inference_mode():
        other = replace(base, precision="fp16").open()
        assert {value.dtype for value in other.dense.parameters()} == {torch.float16}
    assert replace(base, precision="bf16").open().dtype == torch.bfloat16
    assert not torch.equal(fast(replace(base, recipe="papr(keep=0.4, proposal=test_resnet)")), here)
    torch.manual_seed(1)
    assert not torch.equal(fast(replace(base, weights=None, pretrained=False)), here)
    assert not torch.equal(fast(replace(base, proposal_weights=None, pretrained=False)), here)
    assert replace(base, size="96x128").open().preprocessing.input_size == (96, 128)
    assert replace(base, size=96).open().dense.patch_embed.img_size == (96, 96)
    assert replace(base, preprocessing="papers").open().preprocessing.crop_pct == 1
    assert base.open().preprocessing.crop_pct < 1
    own = Preprocessing((96, 96), (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    opened = replace(base, preprocessing=own).open()
    assert opened.preprocessing == own
    assert opened.dense.patch_embed.img_size == (96, 96)
    assert opened.fast(torch.randn(1, 3, 96, 96)).shape == (1, 1000)
    few = ModelSpec("test_vit", "", pretrained=False, args={"num_classes": 7}).open()
    assert few.dense(images).shape == (2, 7)


def test_the_normalisation_is_the_proposals_too(weights, proposal):
    base = ModelSpec("test_vit", "papr(keep=0.5, proposal=test_resnet)", weights, proposal_weights=proposal)
    images = torch.randn(2, 3, 160, 160)
    stated = base.open()
    other = replace(stated.preprocessing, mean=(0.1, 0.2, 0.9), std=(0.3, 0.9, 0.5))
    maps = [
        replace(base, preprocessing=each).open().fast.trace(images).significance
        for each in (stated.preprocessing, other)
    ]
    assert torch.equal(maps[0], stated.fast.trace(images).significance)
    assert not torch.allclose(maps[0], maps[1])


def test_spelled_in_several_ways_it_is_the_same(tmp_path):
    file = (PaPr(0.5) + ToMe(8)).save(tmp_path / "recipe.json")
    text = ModelSpec("nano_vit", "papr(keep=0.5) + tome(r=8)", precision=torch.bfloat16, size=64, device="cpu")
    same = ModelSpec(
        "nano_vit", file, precision="bfloat16", size=[64, 64], device=torch.device("cpu"), sha256={}, args={}
    )
    assert same == text
    assert hash(same) == hash(text)
    assert ModelSpec("nano_vit", PaPr(0.5) + ToMe(8), precision="bf16", size="64") == text
    assert (text.precision, text.size, text.recipe) == ("bf16", (64, 64), "papr(keep=0.5) + tome(r=8)")
    assert ModelSpec("x", args={"a": (1, 2)}) == ModelSpec("x", args={"a": [1, 2]})


def test_json_and_back(weights, proposal):
    spec = ModelSpec(
        "test_vit",
        "papr(keep=0.5, proposal=test_resnet)",
        weights=weights,
        pretrained=False,
        proposal_weights=proposal,
        precision="fp16",
        device="cuda:1",
        size=(96, 128),
        preprocessing=Preprocessing((96, 128), (0.5,) * 3, (0.5,) * 3, crop_mode="squash"),
        args={"num_classes": 1000},
    )
    text = spec.to_json()
    assert ModelSpec.from_json(text) == spec.with_hashes()
    assert ModelSpec.from_json(text).to_json() == text
    data = json.loads(text)
    assert data["tokensieve_model"] == 1
    assert data["recipe"] == "papr(keep=0.5, proposal=test_resnet)"
    assert data["sha256"] == {str(file): file_sha256(file) for file in (weights, proposal)}
    assert set(data) == {"tokensieve_model", *spec.__dataclass_fields__}
    assert ModelSpec.from_json('{"tokensieve_model": 1, "model": "nano_vit"}') == ModelSpec("nano_vit")


def test_json_moves_with_its_files(tmp_path, weights, proposal, monkeypatch):
    (tmp_path / "from").mkdir()
    for file in (weights, proposal):
        (tmp_path / "from" / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    recipe = "papr(keep=0.5, proposal=test_resnet, proposal_weights='from/proposal.safetensors')"
    spec = ModelSpec("test_vit", recipe, weights="from/host.safetensors")
    text = spec.to_json("from")
    assert set(json.loads(text)["sha256"]) == {"host.safetensors", "proposal.safetensors"}
    (tmp_path / "from").rename(tmp_path / "to")
    moved = ModelSpec.from_json(text, "to")
    assert moved.weights == "to/host.safetensors"
    full = moved.absolute()
    monkeypatch.chdir("/")
    assert full.open().fast.trace(torch.randn(1, 3, 160, 160)).kept.shape == (1, 50)
    with pytest.raises(InputError, match="There is no weights file to/host"):
        moved.open()


@pytest.mark.parametrize("changed", ["host", "proposal"])
def test_files_that_have_changed_are_refused(tmp_path, weights, proposal, changed):
    host, net = tmp_path / "host.safetensors", tmp_path / "proposal.safetensors"
    host.write_bytes(weights.read_bytes())
    net.write_bytes(proposal.read_bytes())
    spec = ModelSpec("test_vit", "papr(keep=0.5, proposal=test_resnet)", host, proposal_weights=net)
    recorded, kept = spec.with_hashes(), ModelSpec.from_json(spec.to_json())
    recorded.open()
    name = "test_vit" if changed == "host" else "test_resnet"
    save_file(timm.create_model(name).state_dict(), tmp_path / f"{changed}.safetensors")
    spec.open()
    for each in (recorded, kept, pickle.loads(pickle.dumps(recorded))):
        with pytest.raises(InputError, match=f"{changed}.safetensors is not the file that was expected"):
            each.open()


def test_what_a_recipe_file_records_is_still_checked(tmp_path, proposal, weights):
    net = tmp_path / "net.safetensors"
    net.write_bytes(proposal.read_bytes())
    method = PaPr(0.5, proposal="test_resnet", proposal_weights=str(net))
    file = Recipe((method,)).save(tmp_path / "recipe.json")
    spec = ModelSpec("test_vit", file, weights=weights)
    assert spec.sha256 == {str(net): file_sha256(net)}
    save_file(timm.create_model("test_resnet").state_dict(), net)
    with pytest.raises(InputError, match="is not the file that was expected"):
        spec.open()
    # another proposal's weights take its place, and the record goes with it
    assert ModelSpec("test_vit", file, weights=weights, proposal_weights=proposal).sha256 == {}


def test_another_recipe(weights, proposal):
    spec = ModelSpec("test_vit", PAPR, weights=weights, proposal_weights=proposal).with_hashes()
    other = spec.with_recipe("tome(r=4)")
    assert (other.recipe, other.proposal_weights, other.sha256) == (
        "tome(r=4)",
        None,
        {str(weights): file_sha256(weights)},
    )
    opened = spec.with_recipe("").open()
    again = spec.sieve(opened.dense, opened.preprocessing, Recipe.parse("tome(r=4)"))
    assert (str(again.fast.recipe), again.dense) == ("tome(r=4)", opened.dense)


def test_no_recipe_is_what_commands_take(weights, proposal):
    assert ModelSpec("test_vit", None, weights).recipe_is_default
    with_proposal = ModelSpec("test_vit", None, weights, proposal_weights=proposal)
    assert not with_proposal.recipe_is_default
    assert with_proposal.parsed_recipe() == Recipe.parse(f"papr(keep=0.65, proposal_weights='{proposal}')")


def test_a_users_own_function(own, weights):
    images = torch.randn(1, 4, 160, 160)
    opened = ModelSpec(f"{own}:build", "tome(r=8)", args={"channels": 4}).open()
    assert opened.dense(images).shape == (1, 1000)
    assert not opened.dense.training
    assert ModelSpec(f"{own}:Factory.small", "").open().fast(images[:, :3]).shape == (1, 1000)
    loaded = ModelSpec(f"{own}:build", "", weights).open()
    assert torch.equal(loaded.dense.head.weight, ModelSpec("test_vit", "", weights).open().dense.head.weight)
    stated = Preprocessing((160, 160), (0.5,) * 3, (0.5,) * 3)
    assert ModelSpec(f"{own}:unnormalised", "", preprocessing=stated).open().preprocessing == stated


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("{own}:bild", {}, "has no bild; the nearest is build"),
        ("{own}:NUMBER", {}, "is no function that returns a model, but int"),
        ("no_such_package.models:build", {}, "there is no module no_such_package"),
        ("{own}.inner:build", {}, "there is no module"),
        (
            "{own}:build",
            {"args": {"chanels": 3}},
            "args do not fit the parameters of .*:build: got .*chanels",
        ),
        ("{own}:fails", {}, "fails failed: OSError: the disk is full"),
        ("{own}:no_model", {}, "must return a model .*, not dict"),
        ("{own}:unnormalised", {}, "preprocessing of .* is not known, since VisionTransformer has no pretrained_cfg"),
        ("{own}:build", {"weights": "absent.pt"}, "There is no weights file absent.pt"),
        (
            "test_vit",
            {"size": 100, "pretrained": False},
            "size 100 does not divide into test_vit's patches of 16 pixels",
        ),
        ("convnext_atto", {"size": (16, 32), "pretrained": False}, "size 16x32 is too small for convnext_atto"),
        ("test_vit", {"device": "cuda:99"}, "device cuda:99 does not exist"),
        ("test_vit", {"proposal_weights": "absent.pt", "recipe": None}, "There is no weights file absent.pt"),
        ("vit_bse_patch16_224", {}, "the nearest .* vit_base_patch16_224"),
    ],
)
def test_what_cannot_be_opened_is_a_sentence(own, name, settings, words):
    spec = ModelSpec(name.format(own=own), **{"recipe": "", **settings})  # can be described, here or for elsewhere
    with pytest.raises((InputError, RecipeError), match=words) as caught:
        spec.open()
    assert str(caught.value).endswith(".")


def test_a_module_that_fails_when_it_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import no_such_dependency\n")
    (tmp_path / "wrong_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="broken_module cannot be imported: No module named 'no_such_dependency'"):
        ModelSpec("broken_module:build", "").open()
    with pytest.raises(InputError, match="wrong_module cannot be imported: ZeroDivisionError"):
        ModelSpec("wrong_module:build", "").open()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "model must be a name"),
        ({"model": timm.create_model}, "model must be a name or 'package.module:function'"),
        ({"model": "my-package:build"}, "no import path"),
        ({"model": "package:"}, "no import path"),
        ({"recipe": "tomee(r=8)"}, "the nearest are tome"),
        ({"recipe": PaPr(0.5, proposal=torch.nn.Identity())}, "holds its recipe as text"),
        ({"recipe": "tome(r=8)", "proposal_weights": "x.pt"}, "has no proposal"),
        ({"weights": 3}, "weights must be the name of a file, not 3"),
        ({"pretrained": "no"}, "pretrained must be True or False, not 'no'"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, not 'fp8'"),
        ({"device": "tpu"}, "device must be cpu, cuda, cuda:0 or auto, not 'tpu'"),
        ({"device": "cpu:1"}, "device must be"),
        ({"device": "cuda:"}, "device must be"),
        ({"size": "wide"}, "size must be a side in pixels"),
        ({"size": (1, 2, 3)}, "size must be"),
        ({"size": 0}, "size must be"),
        ({"size": True}, "size must be"),
        ({"size": 32.0}, "size must be"),
        ({"preprocessing": "mine"}, "choose timm or papers"),
        ({"preprocessing": {"input_size": [8, 8]}}, "preprocessing is not the fields of a Preprocessing"),
        ({"preprocessing": Preprocessing((8, 8), (0,), (1,)), "size": 16}, "size is 16, and the preprocessing makes 8"),
        ({"args": {"depth": torch.zeros(1)}}, "args must be plain JSON"),
        ({"args": {"scale": float("nan")}}, "args must be plain JSON"),
        ({"args": [1]}, "args must be keyword arguments"),
        ({"sha256": {"x.pt": "0" * 64}}, "sha256 names x.pt, which is not a file of this model"),
        ({"weights": "x.pt", "sha256": {"x.pt": "12"}}, "64 hexadecimal digits"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises((InputError, RecipeError), match=words):
        ModelSpec(**{"model": "nano_vit", **settings})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", 'is an object like {"tokensieve_model": 1'),
        ('{"tokensieve": 2, "methods": []}', 'is an object like {"tokensieve_model": 1'),
        ('{"tokensieve_model": 2, "model": "nano_vit"}', "version 2; this release reads version 1"),
        ('{"tokensieve_model": 1, "model": "nano_vit", "recipes": ""}', "no setting 'recipes'; the nearest are recipe"),
        ('{"tokensieve_model": 1, "model": "nano_vit", "recipe": {"r": 8}}', "recipe must be text"),
        ('{"tokensieve_model": 1, "model": "nano_vit", "recipe": "file.json"}', "file.json"),
        ('{"tokensieve_model": 1, "model": "nano_vit", "size": [8]}', None),
    ],
)
def test_json_that_is_none(text, words):
    if words is None:
        assert ModelSpec.from_json(text).size == (8, 8)
        return
    with pytest.raises((InputError, RecipeError), match=words):
        ModelSpec.from_json(text)
