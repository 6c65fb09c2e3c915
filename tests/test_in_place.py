"""A sieved model in the place of its host: names, attributes, helpers of other libraries, and later changes."""

from __future__ import annotations

import copy
import io
import types

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models.vision_transformer import VisionTransformer
from timm.optim import create_optimizer_v2
from torch import Tensor, nn

from tokensieve import InputError, UnsupportedHost, sieve

RECIPE = "random(keep=0.5) + tome(r=4)"
WITH_PARTS = "papr(keep=0.5, proposal=test_resnet) + dynamicvit(keep=0.7, layers=(1, 2, 3)) + corrected()"


def small_vit(**settings: object) -> VisionTransformer:
    sizes = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**sizes, **settings}).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_names_are_the_hosts_own() -> None:
    model = small_vit()
    fast = sieve(model, "papr(keep=0.5, proposal=resnet18)", mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    for walk in ("named_parameters", "named_buffers", "named_children", "state_dict"):
        assert list(dict(getattr(fast, walk)())) == list(dict(getattr(model, walk)())), walk
    assert [name for name, _ in fast.named_modules()] == [name for name, _ in model.named_modules()]
    assert all(a is b for a, b in zip(fast.parameters(), model.parameters(), strict=True))


def test_attributes_are_the_hosts_and_are_set_there() -> None:
    model = timm.create_model("vit_tiny_patch16_384", depth=2, num_classes=7)
    fast = sieve(model, "tome(r=8)")
    assert resolve_model_data_config(fast) == resolve_model_data_config(model)
    assert resolve_model_data_config(fast)["input_size"] == (3, 384, 384)
    assert fast.num_classes == 7
    assert fast.no_weight_decay() == model.no_weight_decay()
    fast.reset_classifier(3)
    assert fast(torch.randn(1, 3, 384, 384)).shape == (1, 3)
    fast.head = nn.Identity()
    assert model.head is fast.head
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fast.nothing  # noqa: B018


def test_what_would_run_the_dense_model_is_refused(images: Tensor) -> None:
    fast = sieve(small_vit(global_pool="avg"), "tome(r=4)")
    assert not hasattr(fast, "get_intermediate_layers")
    with pytest.raises(UnsupportedHost, match=r"would run the dense model: fast\.forward_intermediates"):
        fast.get_intermediate_layers(images)
    with pytest.raises(UnsupportedHost, match="would not weight merged tokens"):
        fast.forward_head(fast.forward_features(images))
    plain = sieve(small_vit(), "tome(r=4)")
    assert torch.equal(plain.forward_head(plain.forward_features(images)), plain(images))


def test_optimizer_groups_are_the_hosts() -> None:
    def groups(model: nn.Module, names: dict[Tensor, str]) -> list[tuple[float, float, list[str]]]:
        optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, layer_decay=0.7)
        return [
            (group["weight_decay"], group.get("lr_scale", 1.0), [names[p] for p in group["params"]])
            for group in optimizer.param_groups
        ]

    model = small_vit()
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = groups(model, names)
    assert groups(sieve(model, RECIPE), names) == expected
    assert any("cls_token" in group and decay == 0 for decay, _, group in expected)


def test_values_swapped_in_are_the_ones_computed_with(images: Tensor) -> None:
    model = small_vit()
    values = {name: value + 0.1 for name, value in model.state_dict().items()}
    other = copy.deepcopy(model)
    other.load_state_dict(values)
    for recipe in ("", RECIPE):
        fast = sieve(model, recipe)
        swapped = torch.func.functional_call(fast, values, (images,))
        assert torch.equal(swapped, sieve(other, recipe)(images))
        assert not torch.equal(swapped, fast(images))
        one = torch.func.functional_call(fast, {"cls_token": values["cls_token"]}, (images,))
        assert not torch.equal(one, fast(images))


def test_images_by_the_hosts_name_for_them(images: Tensor) -> None:
    for recipe in ("", RECIPE):
        fast = sieve(small_vit(), recipe)
        assert torch.equal(fast(x=images), fast(images))
        with pytest.raises(InputError, match="Images are a list"):
            fast([images])


def test_an_empty_recipe_runs_hooks_and_all(images: Tensor) -> None:
    model = small_vit()
    model.register_forward_pre_hook(lambda _, inputs: ((inputs[0] - 0.5) / 0.5,))
    model.blocks[1].register_forward_hook(lambda _m, _i, output: output * 3 + 1)
    for recipe in ("", "tome(r=0)"):
        assert torch.equal(sieve(model, recipe)(images), model(images))


@pytest.mark.parametrize("path", ["", "blocks", "blocks.2", "blocks.2.attn"])
@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "replaced"])
def test_hooks_that_would_not_run_are_refused_at_the_call(path: str, kind: str, images: Tensor) -> None:
    model = small_vit()
    fast = sieve(model, RECIPE)
    expected, module = fast(images), model.get_submodule(path)
    if kind == "replaced":
        module.forward = types.MethodType(lambda self, x, **_: x * 0, module)
    else:
        hook = getattr(module, f"register_{kind}_hook")(lambda *_: None)
    with pytest.raises(UnsupportedHost, match=rf"VisionTransformer\.?{path} has .*would not run"):
        fast(images)
    with pytest.raises(UnsupportedHost, match="would not run"):
        fast.trace(images)
    if kind == "replaced":
        del module.forward
    else:
        hook.remove()
    assert torch.equal(fast(images), expected)


def test_hooks_inside_an_opened_block_run(images: Tensor) -> None:
    model, seen = small_vit(), []
    fast = sieve(model, RECIPE)
    for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp"):
        model.blocks[2].get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    fast(images)
    assert seen == ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp"]


def test_hooks_on_blocks_that_stay_whole_run(images: Tensor) -> None:
    model, seen = small_vit(), []
    model.blocks[0].register_forward_hook(lambda *_: seen.append(0))
    sieve(model, "tome(r=4, layers=2:)")(images)
    assert seen == [0]


def test_hooks_on_opened_stages_are_refused() -> None:
    model = timm.create_model("convnext_atto", pretrained=False).eval()
    fast = sieve(model, "papr(keep=0.5, significance=centre)")
    model.stages[1].blocks[0].register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedHost, match=r"ConvNeXt\.stages\.1\.blocks\.0 has a hook"):
        fast(torch.randn(1, 3, 64, 64))


def test_a_block_put_in_later_is_the_one_that_runs(images: Tensor) -> None:
    model = small_vit()
    fast = sieve(model, RECIPE)
    before = fast(images)
    model.blocks[1] = small_vit().blocks[1]
    assert torch.equal(fast(images), sieve(model, RECIPE)(images))
    assert not torch.equal(fast(images), before)
    model.blocks = model.blocks[:2]
    with pytest.raises(UnsupportedHost, match=r"other blocks.*call sieve\(\) again"):
        fast(images)


def replicated(module: nn.Module, device: str) -> nn.Module:
    """As `torch.nn.parallel.replicate` does for one device, without its broadcast between GPUs."""
    modules = list(module.modules())
    copies = {part: part._replicate_for_data_parallel() for part in modules}
    for part, replica in copies.items():
        replica._former_parameters = {}
        for key, child in part._modules.items():
            if child is None:
                replica._modules[key] = None
            else:
                setattr(replica, key, copies[child])
        for key, parameter in part._parameters.items():
            if parameter is None:
                replica._parameters[key] = None
            else:
                moved = parameter.to(device)
                setattr(replica, key, moved)
                replica._former_parameters[key] = moved
        for key, buffer in part._buffers.items():
            if buffer is None:
                replica._buffers[key] = None
            else:
                setattr(replica, key, buffer.to(device))
    return copies[module]


def test_a_data_parallel_replica_computes_with_its_own_weights(images: Tensor) -> None:
    model = small_vit()
    for recipe in ("", "papr(keep=0.5, significance=centre)", RECIPE, "dynamicvit(keep=0.7, layers=(1, 2, 3))"):
        fast = sieve(model, recipe, pretrained=False)
        if "tome" not in recipe:  # which asks whether autocast is on, and torch knows of none on the meta device
            assert replicated(fast, "meta")(images.to("meta")).device.type == "meta"
        replica = replicated(fast, "cpu")
        assert torch.equal(replica(images), fast(images))
        assert replica.model is not model


def test_copies_and_pickles_stand_by_themselves(images: Tensor) -> None:
    fast = sieve(small_vit(), RECIPE)
    file = io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    for other in (copy.deepcopy(fast), torch.load(file, weights_only=False)):
        assert torch.equal(other(images), fast(images))
        with torch.no_grad():
            other.head.bias += 1
        assert torch.equal(other.model.head.bias, other.state_dict()["head.bias"])
        assert not torch.equal(other(images), fast(images))


def test_moves_and_modes_are_shared_with_the_host() -> None:
    model = small_vit()
    fast = sieve(model, "dynamicvit(keep=0.7, layers=(1, 2, 3))", pretrained=False)
    model.train()
    assert fast.training
    fast.eval()
    assert not model.training
    assert fast.double() is fast
    assert {p.dtype for p in (*model.parameters(), *fast.parts.parameters())} == {torch.float64}


@pytest.mark.parametrize("move", ["half", "double", "bfloat16", "meta", "meta, then cpu", "share_memory"])
def test_moves_take_parts_and_proposal_along(move: str) -> None:
    """A proposal keeps the precision that the recipe says, and names of weights are the host's own."""
    fast = sieve(small_vit(), WITH_PARTS, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    names = list(fast.state_dict())
    if move in ("meta", "meta, then cpu"):
        assert fast.to("meta") is fast
        if move == "meta, then cpu":
            fast.to_empty(device="cpu")
    else:
        assert getattr(fast, move)() is fast
    device = "meta" if move == "meta" else "cpu"
    dtype = getattr(torch, move) if move in ("half", "double", "bfloat16") else torch.float32
    assert {(p.device.type, p.dtype) for p in (*fast.parameters(), *fast.parts.parameters())} == {(device, dtype)}
    proposal = [*fast.significance.parameters(), *fast.significance.buffers()]
    assert len(proposal) > 3
    assert {(p.device.type, p.dtype) for p in proposal if p.is_floating_point()} == {(device, torch.float32)}
    assert move != "share_memory" or all(p.is_shared() for p in (*fast.parts.parameters(), *proposal))
    assert list(fast.state_dict()) == list(fast.model.state_dict()) == names
    if dtype != torch.float32:
        pictures = torch.randn(2, 3, 64, 64)
        assert fast(pictures.to(dtype)).dtype == dtype


def test_a_move_inside_a_larger_model_takes_them_along() -> None:
    fast = sieve(small_vit(), WITH_PARTS, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
    nn.Sequential(nn.Identity(), fast).to("meta")
    assert {p.device.type for p in (*fast.parts.parameters(), *fast.significance.parameters())} == {"meta"}


def test_a_host_that_was_moved_alone_is_told_of(images: Tensor) -> None:
    far = images.to("meta")
    for recipe, sentence in {
        "papr(keep=0.5, proposal=test_resnet)": "The proposal test_resnet is on cpu, and its input is on meta",
        "corrected()": r"Learned layers of the recipe \(fast\.parts, 0\) are on cpu",
        "dynamicvit(keep=0.5)": r"are on cpu, .* on meta: move the sieved model, fast\.to",
    }.items():
        fast = sieve(small_vit(), recipe, mean=[0.5] * 3, std=[0.5] * 3, pretrained=False)
        fast.model.to("meta")
        with pytest.raises(InputError, match=sentence):
            fast(far)
        fast.to("meta")
        if "papr" not in recipe:  # torch knows of no autocast on the meta device, which a proposal asks for
            assert fast(far).shape == (2, 5)


def loss_of(fast: nn.Module, images: Tensor) -> Tensor:
    return fast(images).square().sum()


@pytest.mark.parametrize("through", ["call", "replica", "checkpointing"])
def test_gradients_reach_learned_layers_that_are_asked_for(through: str, images: Tensor) -> None:
    """Beside differences of the loss itself, in float64."""
    torch.manual_seed(3)
    fast = sieve(small_vit().double(), "tome(r=4) + corrected()", pretrained=False)
    images = images.double()
    assert not any(parameter.requires_grad for parameter in fast.parts.parameters())
    loss_of(fast, images).backward()
    assert all(parameter.grad is None for parameter in fast.parts.parameters())
    fast.parts.requires_grad_(True)
    if through == "checkpointing":
        fast.set_grad_checkpointing(True)
        fast.train()
    before = fast.head.weight.grad.clone()
    loss_of(replicated(fast, "cpu") if through == "replica" else fast, images).backward()
    assert not torch.equal(fast.head.weight.grad, before)
    for parameter in fast.parts["1"].parameters():
        direction = torch.randn_like(parameter)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-6 * direction
                values.append(loss_of(fast, images))
                parameter -= sign * 1e-6 * direction
        slope = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((parameter.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)


def test_predictors_learn_from_a_loss_of_their_own_and_then_decide_otherwise(images: Tensor) -> None:
    """Which patches stay is a hard choice, through which no gradient flows: scores are taught by themselves."""
    torch.manual_seed(3)
    fast = sieve(small_vit(), "dynamicvit(keep=0.5, layers=(1,))", pretrained=False)
    fast.parts.requires_grad_(True)
    fast(images).sum().backward()
    assert all(parameter.grad is None for parameter in fast.parts.parameters())
    chosen = torch.randperm(64) < 32
    kept = fast.trace(images).source >= 0
    assert not torch.equal(kept[0], chosen)
    with torch.no_grad():
        _, (features,) = fast.model.forward_intermediates(images, indices=[0], output_fmt="NLC")
    optimizer = torch.optim.Adam(fast.parts.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        scores = fast.parts["0"][0](features)
        nn.functional.nll_loss(scores.flatten(0, 1), (~chosen).long().repeat(2)).backward()
        optimizer.step()
    kept = fast.trace(images).source >= 0
    assert torch.equal(kept, chosen.expand(2, -1))
