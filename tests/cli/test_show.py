"""`tokensieve show`: what it prints and writes, and what it refuses."""

import json
from functools import partial

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.pictures import two_classes
from tokensieve.segmentation import SegmenterPlan
from tokensieve.show.compare import map_costs
from tokensieve.show.variants import MAPS

pytestmark = pytest.mark.versions

MODEL = ["--model", "test_vit", "--no-pretrained", "--threads", 1]
PAPR = ["--recipe", "papr(keep=0.5, proposal=test_resnet) + tome(r=2)"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return two_classes(tmp_path_factory.mktemp("pictures"))


def record(result):
    assert result.code == 0, result.err
    return json.loads(result.out)


def test_pictures_and_page_are_written_where_it_was_called(run, pictures, there):
    result = run("show", pictures / "cat", *MODEL, *PAPR)
    assert (result.code, result.err) == (0, "")
    assert sorted(path.name for path in there.iterdir()) == ["tokensieve-show.html", "tokensieve-show.png"]
    assert "tokensieve-show.png\ntokensieve-show.html\n" in result.out
    for word in ("test_vit, 160 x 160, random weights", "dense", "sieved", "0.png", "2.png", "are random"):
        assert word in result.out
    assert max(map(len, result.out.splitlines())) <= 80
    page = (there / "tokensieve-show.html").read_text()
    assert page.count("<figure>") == 3 * 4
    assert "The weights of the model and the proposal are random" in page
    with Image.open(there / "tokensieve-show.png") as sheet:
        assert sheet.width > 4 * 336


def test_json_tells_what_the_pictures_show(run, pictures, there):
    found = record(
        run("show", pictures / "cat", pictures / "dog" / "1.png", *MODEL, *PAPR, "--out", "a.html", "--json")
    )
    assert found["command"].startswith("tokensieve show ")
    assert found["recipe"] == PAPR[1]
    assert found["out"] == ["a.html"]
    assert [path.name for path in there.iterdir()] == ["a.html"]
    assert [picture["name"] for picture in found["pictures"]] == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/1.png"]
    for picture in found["pictures"]:
        assert picture["path"] == str(pictures / picture["name"])
        assert picture["kept"] == 50
        assert picture["tokens_per_block"] == found["tokens"]["per_block"]
        assert set(picture["dense"]) == set(picture["sieved"]) == {"index", "name", "probability"}
    assert (found["total"], found["failures"]) == (4, [])


def test_the_empty_recipe_keeps_every_answer(run, pictures, there):
    found = record(run("show", pictures / "cat", *MODEL, "--recipe", "", "--json"))
    assert all(picture["dense"] == picture["sieved"] and picture["kept"] is None for picture in found["pictures"])
    assert "the empty recipe, which drops and merges nothing" in (there / "tokensieve-show.html").read_text()


def test_pictures_are_limited_evenly_and_broken_ones_named(run, pictures, there):
    result = run("show", pictures, *MODEL, "--recipe", "tome(r=2)", "--limit", 3, "--json")
    found = record(result)
    assert [picture["name"] for picture in found["pictures"]] == ["cat/0.png", "cat/2.png", "dog/1.png"]
    assert found["total"] == 7
    assert "3 of 7 pictures" in (there / "tokensieve-show.html").read_text()
    result = run("show", pictures, *MODEL, "--recipe", "tome(r=2)", "--json")
    assert len(record(result)["pictures"]) == 6
    assert "1 picture was left out" in result.err
    assert record(result)["failures"][0]["path"].endswith("broken.jpg")


def test_the_grid(run, pictures, there):
    options = ["--keep", "0.8,0.4", "--proposals", "test_resnet,test_efficientnet"]
    found = record(run("show", pictures / "cat", *MODEL, *PAPR, *options, "--limit", 2, "--json"))
    assert [(row["proposal"], row["keep"]) for row in found["grid"]] == [
        (name, keep) for name in ("test_resnet", "test_efficientnet") for keep in (0.8, 0.4)
    ]
    assert [len(picture["cells"]) for picture in found["pictures"]] == [4, 4]
    page = (there / "tokensieve-show.html").read_text()
    assert page.count("<figure>") == 2 * (1 + 2 * 3)
    assert page.count('<th scope="row">') == 4
    result = run("show", pictures / "cat", *MODEL, *PAPR, *options)
    for word in ("test_efficientnet", "0.8", "fewer MACs", "answers kept"):
        assert word in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_keep_alone_shows_the_recipes_own_ranking(run, pictures, there):
    found = record(run("show", pictures / "cat", *MODEL, "--recipe", "random(keep=0.5)", "--keep", "0.9,1", "--json"))
    assert [(row["proposal"], row["keep"]) for row in found["grid"]] == [("random", 0.9), ("random", 1.0)]
    assert found["grid"][1]["answers_kept"] == 1
    assert found["random"] == ["model"]


def test_comparing_maps(run, pictures, there, monkeypatch):
    monkeypatch.setattr("tokensieve.show.gallery.map_costs", partial(map_costs, seconds=0))
    options = ["--compare", "papr,cam,random", "--keep", "0.4"]
    found = record(run("show", pictures / "cat" / "0.png", *MODEL, *PAPR, *options, "--json"))
    assert [row["map"] for row in found["compare"]] == ["dense", "papr", "cam", "random"]
    assert found["recipe"].startswith("papr(keep=0.4,")
    assert [entry["kept"] for entry in found["pictures"][0]["maps"]] == [40] * 3
    assert all(row["seconds"] > 0 for row in found["compare"])
    page = (there / "tokensieve-show.html").read_text()
    assert page.count('class="plot"') == 1
    result = run("show", pictures / "cat" / "0.png", *MODEL, *PAPR, *options)
    assert "of dense time" in result.out
    assert max(map(len, result.out.splitlines())) <= 80


def test_weights_reach_the_proposal_they_are_named_for(run, pictures, there):
    save_file(timm.create_model("test_resnet").state_dict(), "resnet.safetensors")
    base = ["show", pictures / "cat" / "0.png", *MODEL, *PAPR, "--json", "--proposal-weights"]
    for given in ("resnet.safetensors", "test_resnet=resnet.safetensors"):
        found = record(run(*base, given))
        assert found["recipe_json"]["methods"][0]["proposal_weights"] == "resnet.safetensors"
        assert found["random"] == ["model"]
    assert "resnet.safetensors" not in (there / "tokensieve-show.html").read_text(), "places of files are private"
    found = record(run(*base, "test_resnet=resnet.safetensors", "--proposals", "test_efficientnet,test_resnet"))
    assert found["proposal_weights"] == {"test_resnet": "resnet.safetensors"}
    assert found["random"] == ["model", "proposal"]
    found = record(run(*base, "resnet.safetensors", "--compare", "papr,random"))
    assert found["random"] == ["model"]


def test_class_names_come_from_a_file(run, pictures, there):
    (there / "names.json").write_text(json.dumps([f"thing {i}" for i in range(1000)]))
    found = record(run("show", pictures / "cat", *MODEL, "--recipe", "", "--classes", "names.json", "--json"))
    for picture in found["pictures"]:
        assert picture["dense"]["name"] == f"thing {picture['dense']['index']}"


def test_other_sizes_and_precisions(run, pictures, there):
    options = ["--size", "96x128", "--dtype", "bf16", "--recipe", "random(keep=0.5)", "--out", "a.png"]
    assert record(run("show", pictures / "cat", *MODEL, *options, "--json"))["input_size"] == [3, 96, 128]
    with Image.open(there / "a.png") as sheet:
        assert sheet.width > 3 * 448


def test_help_names_every_map(run):
    said = "".join(run("show", "--help").out.split())  # without spaces, for lines are broken anywhere
    assert f"mapstocompare:{','.join(MAPS)}." in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["absent"], "absent does not exist"),
        ([], "Missing argument 'IMAGES'"),
        (["{dog}/broken.jpg"], "None of 1 pictures could be read"),
        (["{dog}", "--out", "a.pdf"], "must end in .png"),
        (["{dog}", "--out", "absent/a.png"], "there is no folder absent"),
        (["{dog}", "--keep", "half"], "--keep must be keep ratios"),
        (["{dog}", "--keep", "0"], "keep must be a number in (0, 1]"),
        (["{dog}", "--recipe", "tome(r=2)", "--keep", "0.5"], "keeps no patches by a significance map"),
        (["{dog}", "--proposals", "resnet18,,"], "--proposals must be names"),
        (["{dog}", "--proposals", "no_such_net"], "no_such_net"),
        (["{dog}", "--compare", "came"], "no map 'came'"),
        (["{dog}", "--compare", "cam", "--keep", "0.5,0.4"], "--compare takes one --keep"),
        (["{dog}", "--compare", "cam", "--proposals", "resnet18"], "leave --proposals out"),
        (["{dog}", "--compare", "random", "--keep", "1"], "below 1"),
        (["{dog}", "--proposal-weights", "absent"], "There is no weights file absent."),
        (["{dog}", "--proposal-weights", "test_resnt={dog}/0.png"], "the nearest is test_resnet"),
        (["{dog}", "--proposals", "a,b", "--proposal-weights", "{dog}/0.png"], "write NAME=FILE"),
        (["{dog}", *("--proposal-weights", "{dog}/0.png"), *("--proposal-weights", "{dog}/1.png")], "write NAME=FILE"),
        (["{dog}", "--proposal-weights", "{dog}/0.png"], "cannot be read as weights"),
        (["{dog}", "--classes", "absent.json"], "absent.json cannot be read"),
        (["{dog}", "--limit", "0"], "--limit"),
        (["torch/cifar10"], "timm cannot open"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_is_written(refused, pictures, there, options, words):
    given = [option.format(dog=pictures / "dog") for option in options]
    recipe = [] if "--recipe" in given else PAPR
    assert words in refused("show", *given, *MODEL, *recipe)
    assert not list(there.iterdir())


@pytest.mark.shared
def test_real_weights_keep_the_answers(run, shared, there):
    weights = shared / "weights"
    found = record(
        run(
            *("show", shared / "data/imagenet_val_a", "--limit", 12, "--threads", 1, "--json"),
            *("--model", "deit_tiny_patch16_224", "--weights", weights / "deit_tiny_patch16_224.safetensors"),
            *("--recipe", "papr(keep=0.8, proposal=squeezenet1_1)", "--out", "a.html"),
            *("--proposal-weights", weights / "squeezenet1_1.safetensors"),
        )
    )
    assert sum(picture["same"] for picture in found["pictures"]) >= 10
    assert found["random"] == []


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A small trained segmenter's file, and a threshold that some of its patches pass."""
    file = tmp_path_factory.mktemp("segmenter") / "small.safetensors"
    plan = SegmenterPlan(
        "test_vit", ("wall", "door"), "setr_naive", {"levels": [1, 3, 5], "channels": 8}, crop=(48, 64)
    )
    torch.manual_seed(0)
    model, plan = plan.build()
    for head in model.heads:
        head.classifier.weight.data.mul_(20)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    plan.save(file.with_suffix(".json"))
    return file


def test_a_segmenter_is_shown_by_its_exits(run, pictures, segmenter, there):
    options = ["--model", segmenter, "--recipe", "dtop(threshold=0.6, keep_per_class=1)", "--threads", 1]
    result = run("show", pictures / "cat", *options)
    assert result.code == 0, result.err
    for word in ("48 x 64", "pixels as in the dense map", "fewer MACs", "0.png"):
        assert word in " ".join(result.out.split())  # a long folder breaks lines anywhere
    page = (there / "tokensieve-show.html").read_text()
    assert page.count("<figure>") == 3 * 4
    assert "exits after block 1" in page
    assert "stays to the last, block 5" in page
    assert "wall " in page
    found = record(run("show", pictures / "cat", *options, "--json", "--out", "a.png"))
    for picture in found["pictures"]:
        assert sum(picture["left_behind"].values()) == 3 * 4
        assert 0 <= picture["agreement"] <= 100
    assert any(picture["left_behind"]["1"] for picture in found["pictures"])
    mean = sum(picture["macs"] for picture in found["pictures"]) / 3
    assert found["macs"]["sieved"] == pytest.approx(mean)
    assert found["macs"]["ratio"] == pytest.approx(found["macs"]["dense"] / mean)
    last = sum(picture["tokens_per_block"][-1] for picture in found["pictures"]) / 3
    assert found["tokens"]["per_block"][-1] == round(last)
    assert found["tokens"]["dense"] == 12 + 1
