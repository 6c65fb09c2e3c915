"""How a segmenter is built, as JSON."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tokensieve import sieve
from tokensieve.data import Preprocessing
from tokensieve.data.inputs import own_input_size
from tokensieve.data.scenes import MAP_CLASSES
from tokensieve.errors import InputError, RecipeError
from tokensieve.measure import macs
from tokensieve.segmentation.plan import HEADS, SegmenterPlan, open_trained, plan_file, trained_files
from tokensieve.zoo import create

ARGS = {
    "segvit": {"exits": [1, 5], "width": 16, "heads": 2},
    "segvit_v1": {"levels": [1, 5], "width": 16, "heads": 2},
    "segvit_v2": {"levels": [1, 5], "width": 16, "heads": 2},
    "setr_naive": {"levels": [1, 5], "channels": 8},
    "setr_pup": {"levels": [1, 5], "channels": 8},
    "setr_mla": {"levels": [1, 3, 4, 5], "channels": 8},
    "linear": {},
}


@pytest.mark.parametrize("head", HEADS)
def test_trained_weights_open_as_they_were(head, tmp_path):
    plan = SegmenterPlan("test_vit", ("a", "b"), head, ARGS[head], crop=(32, 48), stride=(16, 24))
    segmenter, built = plan.build()
    assert built.mean is not None
    file = tmp_path / "x.safetensors"
    save_file({key: value.contiguous() for key, value in segmenter.state_dict().items()}, file)
    built.save(plan_file(file))
    back, again = open_trained(file)
    assert again == built
    images = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        assert torch.equal(back(images), segmenter.eval()(images))


def test_a_built_segmenter_states_its_classes_size_and_normalisation():
    plan = SegmenterPlan("test_vit", ("a", "b"), "setr_naive", ARGS["setr_naive"], crop=(32, 48), stride=(16, 24))
    segmenter, built = plan.build()
    assert segmenter.class_names == ("a", "b")
    assert own_input_size(segmenter) == own_input_size(sieve(segmenter)) == (3, 32, 48), "not the backbone's 160"
    own = Preprocessing.of(segmenter)
    assert (own.input_size, own.mean, own.std) == ((32, 48), built.mean, built.std)
    assert macs(segmenter) == macs(segmenter, (3, 32, 48))


def test_the_bundled_one_opens_by_its_name():
    weights, built = trained_files("nano_segmenter")
    assert weights.is_file()
    assert built.is_file()
    assert trained_files("vit_tiny") is None
    segmenter, plan = open_trained("nano_segmenter")
    assert (plan.crop, plan.classes) == ((112, 112), MAP_CLASSES)
    assert not segmenter.training
    assert len(segmenter.exits) > 2
    random, _ = open_trained("nano_segmenter", pretrained=False)
    assert not torch.equal(random.decode_head.classifier.weight, segmenter.decode_head.classifier.weight)
    assert weights.stat().st_size < 4e6
    with pytest.raises(RecipeError, match=r"segmentation\.open_trained\('nano_segmenter'\) opens it"):
        create("nano_segmenter")


def test_what_cannot_be_built_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="There is no head 'segvitt'; the nearest"):
        SegmenterPlan("test_vit", ("a",), "segvitt")
    with pytest.raises(RecipeError, match="crop must be a height and a width"):
        SegmenterPlan("test_vit", ("a",), crop=(32,))
    with pytest.raises(RecipeError, match="The head segvit cannot be built with"):
        SegmenterPlan("test_vit", ("a",), head_args={"widht": 3}).build()
    file = tmp_path / "x.safetensors"
    with pytest.raises(InputError, match=r"x\.json cannot be read as the plan of a segmenter"):
        open_trained(file)
    plan_file(file).write_text('{"backbone": "test_vit"}')
    with pytest.raises(InputError, match="is not the plan of a segmenter"):
        open_trained(file)
    SegmenterPlan("test_vit", ("a", "b"), head_args=ARGS["segvit"]).save(plan_file(file))
    other, _ = SegmenterPlan("test_vit", ("a", "b"), "linear").build()
    save_file({key: value.contiguous() for key, value in other.state_dict().items()}, file)
    with pytest.raises(InputError, match=r"Cannot load x\.safetensors into segvit on test_vit"):
        open_trained(file)
