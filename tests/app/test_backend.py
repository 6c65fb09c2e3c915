"""Answers: the same as the models give elsewhere, and a sentence for whatever cannot be answered."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.broken_pictures import broken_folder
from tokensieve import ModelSpec, sieve
from tokensieve.app import backend as backend_module
from tokensieve.app import examples
from tokensieve.app.backend import Backend, Time, message_for
from tokensieve.app.models import ModelEntry, bundled_entries, given_entry
from tokensieve.errors import InputError, RecipeError
from tokensieve.measure import macs

PAPR = "papr(keep=0.4, proposal=nano_convnet)"


@pytest.fixture(scope="module")
def backend():
    return Backend(bundled_entries())


def values(result):
    return [fact.value for fact in result.section.facts]


def test_a_picture_gets_both_answers_its_map_what_is_kept_and_the_costs(backend):
    result = backend.run("nano_vit", PAPR, 0)
    picture = examples.pictures()[0].picture
    dense, fast, own = ModelSpec("nano_vit", PAPR).open()
    image = own.transform()(picture)[None]
    with torch.no_grad():
        answers = [model(image).softmax(-1) for model in (dense, fast)]
    told = [f"{int(each.argmax())}" for each in answers]
    assert [value.split()[0] for value in values(result)[:2]] == told
    assert result.headline.startswith(f"Same answer: {told[0]}." if told[0] == told[1] else "Another answer: ")
    assert result.title == examples.pictures()[0].name
    assert [panel.caption for panel in result.section.panels[0]] == ["Input", "Significance map", "Kept patches"]
    ratio = macs(dense) / macs(fast)
    assert f"{ratio:.2f}x" in values(result)
    assert f"{int(197 * 0.4) + 1} of 197" in values(result)


def test_time_is_measured_once_for_a_recipe_whatever_the_picture(backend, monkeypatch):
    taken = []

    def measured(*given):
        taken.append(given)
        return Time(0.002, 0.001, 2.0, 8)

    monkeypatch.setattr(backend_module, "_measured", measured)
    results = [backend.with_time(backend.run("nano_vit", "random(keep=0.35)", number)) for number in (0, 1, 0)]
    assert len(taken) == 1
    assert results[0].section.facts[-1].value == "2.00x"
    assert results[0].section.facts[-1].label == "faster here, 2.00 → 1.00 ms a picture, 8 at once"
    assert not results[0].section.facts[-1].alert


def test_time_is_measured_anew_where_the_recipe_reads_as_much_as_a_picture_needs(backend, monkeypatch):
    taken = []
    monkeypatch.setattr(backend_module, "_measured", lambda *given: taken.append(given) or Time(0.04, 0.05, 0.8, 1))
    for number in (0, 1):
        told = backend.with_time(backend.run("nano_segmenter", "dtop(threshold=0.9)", number)).section.facts[-1]
    assert len(taken) == 2
    assert told.alert
    assert told.label == "the speed: slower here, 40.0 → 50.0 ms a picture"


def test_a_real_measurement_is_of_both_models(backend):
    loaded = backend.loaded("nano_vit")
    result = backend.run("nano_vit", "random(keep=0.2)", 0)
    time = backend_module._measured(loaded.opened, result.fast, result.images)
    assert time.batch in (1, backend_module.TIMING_BATCH)
    assert 0 < time.sieved < time.dense
    assert time.ratio > 1


def test_keep_ratios_share_one_map_and_give_what_each_gives_alone(backend):
    loaded = backend.loaded("nano_vit")
    for keep in (0.2, 0.7):
        result = backend.run("nano_vit", f"papr(keep={keep}, proposal=nano_convnet)", 3)
        alone = sieve(loaded.opened.dense, result.recipe, mean=(0.5,) * 3, std=(0.5,) * 3)
        with torch.no_grad():
            assert torch.equal(result.fast(result.images), alone(result.images))
    some = [backend.run("nano_vit", f"papr(keep={keep}, proposal=nano_convnet)", 3).fast for keep in (0.2, 0.7)]
    assert some[0].significance is some[1].significance


def test_nothing_left_out_is_said(backend):
    result = backend.run("nano_vit", "", 0)
    assert result.headline.endswith("The model reads everything.")
    assert "1.00x" in values(result)


def test_a_segmenter_shows_both_maps_and_where_patches_leave(backend):
    result = backend.run("nano_segmenter", "dtop(threshold=0.95)", 0)
    captions = [panel.caption for panel in result.section.panels[0]]
    assert captions == ["Input", "Classes, dense", "Classes, sieved", "Exits"]
    assert "of the pixels keep their class" in result.headline


def test_a_model_with_stages_shows_pixels(backend):
    result = backend.run("nano_convnext", "papr(keep=0.5, proposal=nano_convnet)", 0)
    assert any(panel.caption.startswith("Kept, stage") for panel in result.section.panels[0])
    assert not any("tokens" in fact.label for fact in result.section.facts)


def test_a_clip_gets_a_strip_for_each_layer(backend):
    pytest.importorskip("transformers", reason="nano_video is a model of transformers")
    result = backend.run("nano_video", "papr(keep=0.4, significance=motion)", 2)
    assert [row[0].caption for row in result.section.panels] == ["Input", "Significance map", "Kept patches"]
    assert {len(row) for row in result.section.panels} == {4}
    dense, _, own = ModelSpec("nano_video", "papr(keep=0.4, significance=motion)").open()
    clip, _ = examples.clip(2, own)
    with torch.no_grad():
        best = int(dense(clip).logits.argmax())
    assert values(result)[0].startswith(backend.models["nano_video"].classes[best])


def test_a_video_file_is_read(backend, tmp_path):
    pytest.importorskip("transformers", reason="nano_video is a model of transformers")
    av = pytest.importorskip("av", reason="videos are read by PyAV")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=8)
        stream.width, stream.height = 64, 64
        for i in range(16):
            frame = np.zeros((64, 64, 3), np.uint8)
            frame[20:40, i : i + 20] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    assert backend.model_for("nano_vit", path) == "nano_video"
    result = backend.run("nano_video", "papr(keep=0.4, significance=motion)", path)
    assert result.images.shape == (1, 8, 3, 64, 64)
    path.write_bytes(b"no video at all")
    with pytest.raises(InputError, match=r"^clip\.mp4 "):
        backend.run("nano_video", "papr(keep=0.4, significance=motion)", path)


def test_which_model_reads_a_file(backend):
    assert backend.model_for("nano_segmenter", Path("a.jpg")) == "nano_segmenter"
    assert backend.model_for("nano_video", Path("a.jpg")) == "nano_vit"
    assert backend.model_for("nano_vit", 3) == "nano_vit"
    only = Backend([entry for entry in bundled_entries() if not entry.videos])
    with pytest.raises(InputError, match=r"a\.MP4 is a clip, and no model on this page reads clips"):
        only.model_for("nano_vit", Path("/secret/place/a.MP4"))


def test_broken_pictures_are_a_sentence_that_tells_no_place_on_this_machine(backend, tmp_path):
    told, expected = {}, broken_folder(tmp_path / "all")
    expected["strip.png"] = None  # at 112 pixels it fits in memory
    for name, why in expected.items():
        try:
            backend.run("nano_vit", "", tmp_path / "all" / name)
        except InputError as error:
            told[name] = str(error)
        assert (name in told) is (why is not None), (name, told)
    for name, said in told.items():
        assert str(tmp_path) not in said
        assert said.startswith(name), said
        assert said.endswith("."), said


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (3000, 2000)).save(tmp_path / "wide.png")
    small = Backend(bundled_entries(), pixels=5_000_000)
    with pytest.raises(InputError, match=r"^wide\.png has 3000 x 2000 pixels; at most 5,000,000 are read here\.$"):
        small.run("nano_vit", "", tmp_path / "wide.png")
    Image.new("1", (30000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"^bomb\.png has more pixels than"):
        small.run("nano_vit", "", tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("papr(keep=0.5)", "ranks by mobileone_s0, whose weights are not here"),
        ("papr(keep=0.5, proposal=resnet50)", "ranks by resnet50"),
        ("papr(keep=0.5, proposal=nano_convnet, proposal_weights='/etc/passwd')", "files cannot be chosen"),
        ("corrected(weights='/etc/passwd')", "cannot be chosen"),
        ("papr(keep=0.5, proposal=nano_convnet, proposal_size=90000)", "cannot be set on this page"),
        ("papr(keep=0.5, proposal=nano_convnet, proposal_args={'width': 90000})", "cannot be set on this page"),
        ("papr(keep=2)", "keep"),
        ("nonsense(", "nonsense"),
        ("tome(r=1) + " * 500 + "tome(r=1)", "2000 is the most"),
    ],
)
def test_a_visitors_recipe_reads_no_file_and_downloads_nothing(backend, text, said):
    with pytest.raises(RecipeError, match=said):
        backend.run("nano_vit", text, 0)


def test_the_recipe_file_that_the_page_was_started_with_may_be_named_without_its_folder(tmp_path):
    weights = Path(backend_module.__file__).parents[1] / "zoo" / "weights" / "nano_convnet.safetensors"
    (tmp_path / "w.safetensors").write_bytes(weights.read_bytes())
    text = f"papr(keep=0.5, proposal=nano_convnet, proposal_weights='{tmp_path / 'w.safetensors'}')"
    own = replace(given_entry(ModelSpec("nano_vit", text)), name="mine")
    backend = Backend([own])
    found = backend.recipe("mine", "papr(keep=0.2, proposal=nano_convnet, proposal_weights=w.safetensors)")
    assert found.paths() == [str(tmp_path / "w.safetensors")]
    preset = next(iter(backend.loaded("mine").presets.values()))
    assert str(tmp_path) not in preset.about


def test_an_unknown_model_is_told_with_those_that_are_there(backend):
    with pytest.raises(InputError, match=r"no model 'nano_vut' here; the nearest (is|are) nano_vit"):
        backend.run("nano_vut", "", 0)


def test_a_model_without_classes_is_compared_by_its_embedding():
    spec = ModelSpec("test_vit", "", pretrained=False, args={"num_classes": 0})
    result = Backend([ModelEntry("mine", "", spec)]).run("mine", "tome(r=4)", 0)
    assert "cosine of the dense and the sieved embedding" in result.headline


def test_what_is_forgotten_is_made_again(monkeypatch):
    monkeypatch.setattr(backend_module, "CACHE_SIZE", 1)
    backend = Backend(bundled_entries()[:1])
    results = [backend.run("nano_vit", f"tome(r={r})", 0) for r in (1, 2, 3, 1)]
    assert len(backend.loaded("nano_vit")._cache) <= 3
    assert values(results[0]) == values(results[3])


def test_errors_in_sentences(caplog):
    assert message_for(InputError("No.")) == "No."
    assert "not enough memory" in message_for(RuntimeError("CUDA out of memory. Tried"))
    assert not caplog.records
    said = message_for(KeyError("/srv/secret"))
    assert said.startswith("Something went wrong here")
    assert "secret" not in said
    assert caplog.records[0].exc_info
