import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers import Conv2dSame

from tokensieve.errors import InputError, RecipeError
from tokensieve.zoo import create, file_sha256

SMALL = "test_resnet"  # timm's own toy network


@pytest.fixture
def state():
    return {key: value + 1 for key, value in timm.create_model(SMALL).state_dict().items()}


@pytest.fixture
def file(tmp_path, state):
    save_file(state, tmp_path / "small.safetensors")
    return tmp_path / "small.safetensors"


def test_timm_comes_first_with_its_own_normalisation():
    model, mean, std = create("resnetv2_50", pretrained=False, args={"layers": (1, 1, 1, 1)})
    assert isinstance(model, timm.models.resnetv2.ResNetV2)
    assert not model.training
    assert (mean, std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_torchvision_has_what_timm_has_not():
    model, mean, _ = create("squeezenet1_1", pretrained=False)
    assert type(model).__module__.startswith("torchvision")
    assert mean == (0.485, 0.456, 0.406)


def test_torchvisions_model_of_a_name_that_timm_knows_too():
    assert type(create("convnext_tiny", pretrained=False).model) is timm.models.ConvNeXt
    model, mean, _ = create("torchvision/convnext_tiny", pretrained=False, args={"num_classes": 7})
    assert type(model) is torchvision.models.ConvNeXt
    assert model.classifier[-1].out_features == 7
    assert mean == (0.485, 0.456, 0.406)
    with pytest.raises(RecipeError, match="knows a model 'torchvision/vit_tiny_patch16_224'"):
        create("torchvision/vit_tiny_patch16_224")


def test_arguments_reach_the_constructor():
    overlay = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    args = {"pad_type": "same", "pretrained_cfg_overlay": overlay}
    model, mean, std = create("mobilenetv2_100", pretrained=False, args=args)
    assert isinstance(model.conv_stem, Conv2dSame)
    assert (mean, std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(("name", "near"), [("mobileone_so", "mobileone_s0"), ("squeezenet_1_1", "squeezenet1_1")])
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(RecipeError, match=f"Neither timm nor torchvision knows a model '{name}'.*{near}"):
        create(name)


def test_a_hub_name_is_not_looked_up():
    with pytest.raises(RecipeError, match="knows a model 'hf-hub:someone/model'"):
        create("hf-hub:someone/model")


def test_arguments_that_the_constructor_refuses():
    with pytest.raises(RecipeError, match=r"cannot be created with the arguments .*no_such"):
        create(SMALL, pretrained=False, args={"no_such": 1})


@pytest.mark.parametrize("kind", ["safetensors", "pth", "nested"])
def test_weights_from_a_file_are_cast_to_float32(tmp_path, state, kind):
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    path = tmp_path / f"weights.{kind}"
    if kind == "safetensors":
        save_file(half, path)
    else:
        torch.save({"state_dict": half, "epoch": 3} if kind == "nested" else half, path)
    loaded = create(SMALL, weights=path).model.state_dict()
    for key, value in half.items():
        assert loaded[key].dtype == (torch.float32 if value.is_floating_point() else value.dtype)
        torch.testing.assert_close(loaded[key], value.to(loaded[key].dtype), rtol=0, atol=0)


def test_a_file_means_no_download(file, monkeypatch):
    def no_download(*_, **__):
        raise AssertionError("asked for pretrained weights")

    monkeypatch.setattr("timm.models._builder.load_pretrained", no_download)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_download)
    create(SMALL, weights=file)
    create("lraspp_mobilenet_v3_large", pretrained=False)  # would fetch its backbone


def test_a_failing_download_says_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host\nand more")

    monkeypatch.setattr("timm.create_model", offline)
    with pytest.raises(InputError, match=r"of test_resnet could not be loaded \(no route to host\): give weights=FILE"):
        create(SMALL)


def test_the_sha256_is_checked(file):
    create(SMALL, weights=file, sha256=file_sha256(file).upper())
    with pytest.raises(InputError, match=f"small.safetensors is not the file.*{file_sha256(file)}, expected 0000"):
        create(SMALL, weights=file, sha256="0000")


def test_sha256_of_known_bytes(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _without(state, key):
    return {name: value for name, value in state.items() if name != key}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: _without(s, "fc.bias"), r"the file has no 'fc.bias' \(1 such keys\)"),
        (lambda s: s | {"extra": torch.ones(1)}, r"the model has no 'extra' \(1 such keys\)"),
        (
            lambda s: s | {"fc.bias": torch.ones(7)},
            r"'fc.bias' has shape \(7,\) in the file and \(1000,\) in the model",
        ),
    ],
)
def test_weights_of_another_model_are_refused(tmp_path, state, change, says):
    save_file(change(state), tmp_path / "other.safetensors")
    with pytest.raises(InputError, match=f"Cannot load other.safetensors into {SMALL}: {says}"):
        create(SMALL, weights=tmp_path / "other.safetensors")


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(InputError, match="There is no weights file"):
        create(SMALL, weights=tmp_path / "nothing.pth")
    for name in ("junk.pth", "junk.safetensors"):
        (tmp_path / name).write_bytes(b"this is no checkpoint")
        with pytest.raises(InputError, match=f"{name} cannot be read as weights"):
            create(SMALL, weights=tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        create(SMALL, weights=tmp_path / "list.pth")


class _Unsafe:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_code_in_a_checkpoint_does_not_run(tmp_path, capsys):
    torch.save({"fc.bias": _Unsafe()}, tmp_path / "unsafe.pth")
    with pytest.raises(InputError, match="cannot be read as weights"):
        create(SMALL, weights=tmp_path / "unsafe.pth")
    assert "ran" not in capsys.readouterr().out
