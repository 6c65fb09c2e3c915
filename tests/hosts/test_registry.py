"""Hosts from outside the package: a plain transformer and a model with stages, both with names of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import tokensieve
from tests.reference import methods as slow
from tests.reference.hf_hosts import assert_asking_agrees, seeded
from tests.reference.staged import centre, ranked_pixels
from tests.reference.vit import reference_forward
from tokensieve import UnsupportedHost, measure, register_host, sieve
from tokensieve.hosts import BlockQKV, Host, HostBlock, PixelBlock, Stage, StagedHost, host_for, open_host
from tokensieve.hosts.registry import HOSTS
from tokensieve.tokens import Tokens, rows

WIDTH, HEADS, DEPTH, SIDE, CLASSES = 32, 2, 3, 5, 7


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.ask, self.answer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (
            part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (self.ask(y), *self.answer(y).chunk(2, 2))
        )
        x = x + self.mix(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.wide(self.behind(x))))


class LittleViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.first, self.places = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(SIDE**2 + 1, WIDTH))
        self.layers = nn.ModuleList(Layer() for _ in range(DEPTH))
        self.last, self.classify = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.cut(pictures).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), 1, -1), x], dim=1) + self.places
        for layer in self.layers:
            x = layer(x)
        return self.classify(self.last(x)[:, 0])


class OpenLayer(HostBlock):
    def __init__(self, layer: Layer) -> None:
        self.layer, self.bypassed = layer, (layer,)

    def __call__(self, tokens: Tokens) -> Tensor:
        return self.layer(tokens.x)

    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        y = self.layer.before(tokens.x)
        parts = (self.layer.ask(y if query_rows is None else rows(y, query_rows)), *self.layer.answer(y).chunk(2, 2))
        q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts)
        return BlockQKV(q, k, v, keys=k)

    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        return x + self.layer.mix(attended.transpose(1, 2).flatten(2))

    def mlp(self, x: Tensor) -> Tensor:
        return x + self.layer.narrow(F.gelu(self.layer.wide(self.layer.behind(x))))


class OpenLittleViT(Host):
    prefix, class_token, reads_prefix = 1, True, True

    def __init__(self, model: Any) -> None:
        self.model, self.width, self.blocks = model, WIDTH, [OpenLayer(layer) for layer in model.layers]

    def embed(self, images: Tensor) -> Tokens:
        x = self.model.cut(images)
        grid = tuple(x.shape[2:])
        first = self.model.first.expand(len(x), 1, -1)
        return Tokens(torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1) + self.model.places, 1, grid)

    def features(self, tokens: Tokens) -> Tokens:
        return replace(tokens, x=self.model.last(tokens.x))

    def head(self, tokens: Tokens) -> Tensor:
        return self.model.classify(tokens.x[:, 0])


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.spread, self.point = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.point(self.spread(x).permute(0, 2, 3, 1)))
        return x + y.permute(0, 3, 1, 2)


class LittleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shrink = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 12, 2, stride=2)
        self.one, self.two = Bottleneck(8), Bottleneck(12)
        self.classify = nn.Linear(12, CLASSES)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.classify(self.two(self.shrink(self.one(self.stem(pictures)))).mean((2, 3)))


class OpenBottleneck(PixelBlock):
    def spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.permute(0, 2, 3, 1), self.block.spread(x).permute(0, 2, 3, 1)

    def pointwise(self, y: Tensor) -> Tensor:
        return F.gelu(self.block.point(y))


class OpenLittleNet(StagedHost):
    family, background, channels_first, widths = "LittleNet", "keep", True, (8, 12)

    def __init__(self, model: Any) -> None:
        self.model = model
        self.stages = [
            Stage(nn.Identity(), [OpenBottleneck(model.one)]),
            Stage(model.shrink, [OpenBottleneck(model.two)]),
        ]

    def embed(self, images: Tensor) -> Tensor:
        return self.model.stem(images)

    def features(self, x: Tensor) -> Tensor:
        return x

    def answer(self, maps: Any) -> Tensor:
        return self.model.classify(maps[-1].mean((2, 3)))


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """What a test registers is gone after it."""
    before = dict(HOSTS)
    yield
    HOSTS.clear()
    HOSTS.update(before)


def pictures() -> Tensor:
    return torch.randn(3, 3, SIDE * 8, SIDE * 8, generator=torch.Generator().manual_seed(1))


def as_timm(model: LittleViT) -> VisionTransformer:
    """The same weights in timm's model, which the reference knows."""
    other = VisionTransformer(
        SIDE * 8, 8, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, mlp_ratio=2, num_classes=CLASSES,
        norm_layer=nn.LayerNorm,
    )  # fmt: skip
    own = model.state_dict()
    state = {"cls_token": own["first"][None, None], "pos_embed": own["places"][None]}
    names = {"cut": "patch_embed.proj", "last": "norm", "classify": "head"}
    for i in range(DEPTH):
        names |= {f"layers.{i}.before": f"blocks.{i}.norm1", f"layers.{i}.behind": f"blocks.{i}.norm2"}
        names |= {f"layers.{i}.wide": f"blocks.{i}.mlp.fc1", f"layers.{i}.narrow": f"blocks.{i}.mlp.fc2"}
        names |= {f"layers.{i}.mix": f"blocks.{i}.attn.proj"}
    for leaf in ("weight", "bias"):
        state |= {f"{theirs}.{leaf}": own[f"{ours}.{leaf}"] for ours, theirs in names.items()}
        for i in range(DEPTH):
            parts = [own[f"layers.{i}.{part}.{leaf}"] for part in ("ask", "answer")]
            state[f"blocks.{i}.attn.qkv.{leaf}"] = torch.cat(parts)
    other.load_state_dict(state)
    return other.double().eval()


def test_a_host_of_ones_own_is_opened_by_sieve() -> None:
    model, images = seeded(LittleViT, 1), pictures()
    with pytest.raises(UnsupportedHost, match=r"LittleViT cannot be sieved: no opener .*test_registry\.LittleViT"):
        sieve(model)
    assert register_host(LittleViT)(OpenLittleViT) is OpenLittleViT
    assert type(open_host(model)) is OpenLittleViT
    recipes = ("", "papr(keep=1)", "tome(r=0)", "evit(keep=1) + diffrate(drop=0, merge=0)")
    with torch.no_grad():
        for training in (False, True):
            model.train(training)
            for recipe in recipes:
                assert torch.equal(sieve(model, recipe)(images), model(images))
        half = seeded(LittleViT, 1).bfloat16()
        for recipe in recipes:
            assert torch.equal(sieve(half, recipe)(images.bfloat16()), half(images.bfloat16()))


@pytest.mark.parametrize(
    ("recipe", "steps"),
    [
        ("tome(r=4)", [slow.Tome(4)]),
        (
            "evit(keep=0.7, layers=(1,)) + pitome(r=2, layers=2:)",
            [slow.Evit(0.7, (1,)), slow.Pitome(2, layers=slice(2, None))],
        ),
        ("guarded(r=3, drop=2) + readout()", [slow.Guarded(3, 2), slow.Readout()]),
    ],
)
def test_it_is_the_reference_on_merged_tokens(recipe: str, steps: list[Any]) -> None:
    register_host(LittleViT)(OpenLittleViT)
    model, images = seeded(LittleViT, 1).double(), pictures().double()
    with torch.no_grad():
        torch.testing.assert_close(as_timm(model)(images), model(images), atol=1e-10, rtol=1e-10)
        expected = reference_forward(as_timm(model), images, steps=steps)
        trace = sieve(model, recipe).trace(images)
    assert expected.margin > 1e-9
    assert trace.tokens_per_block == expected.tokens_per_block
    assert torch.equal(trace.source, expected.source)
    torch.testing.assert_close(trace.output, expected.output, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(trace.tokens.x, expected.tokens, atol=1e-9, rtol=1e-9)


def test_the_verbs_compose_to_the_block() -> None:
    host = OpenLittleViT(seeded(LittleViT, 1).double())
    with torch.no_grad():
        tokens = host.embed(pictures()[:2].double())
        for block in host.blocks:
            heads = block.qkv(tokens)
            out = block.mlp(block.attention_out(heads.attend(), heads, tokens.x))
            torch.testing.assert_close(out, block(tokens), atol=1e-10, rtol=1e-10)
            assert_asking_agrees(block, tokens)


def test_a_map_ranks_its_patches_and_its_cost_is_counted() -> None:
    register_host(LittleViT)(OpenLittleViT)
    model, images = seeded(LittleViT, 1), pictures()
    fast = sieve(model, "papr(keep=0.5, significance=mean, proposal=test_resnet)", mean=[0.5] * 3, std=[0.5] * 3,
                 pretrained=False)  # fmt: skip
    assert fast.trace(images).tokens_per_block == [int((SIDE**2 + 1) * 0.5) + 1] * DEPTH
    size = (3, SIDE * 8, SIDE * 8)
    assert 0.4 < measure.macs(fast, size, proposal=False) / measure.macs(model, size) < 0.6


def by_hand(model: LittleNet, image: Tensor, share: float) -> Tensor:
    """LittleNet on one image, its point-wise layers pixel by pixel and on the chosen ones alone."""
    x = model.stem(image[None])
    for block, shrink in ((model.one, None), (model.two, model.shrink)):
        x = x if shrink is None else shrink(x)
        spread, out = block.spread(x), x.clone()
        height, width = x.shape[2:]
        for j in ranked_pixels(centre((height, width)), share):
            i, j = j // width, j % width
            out[0, :, i, j] = x[0, :, i, j] + F.gelu(block.point(spread[0, :, i, j]))
        x = out
    return model.classify(x.mean((2, 3)))[0]


def test_a_host_with_stages_of_ones_own() -> None:
    register_host(LittleNet)(OpenLittleNet)
    model, images = seeded(LittleNet, 2).double(), torch.randn(2, 3, 36, 52).double()
    with torch.no_grad():
        assert torch.equal(sieve(model, "papr(keep=1)")(images), model(images))
        trace = sieve(model, "papr(keep=0.6, significance=centre)").trace(images)
        expected = torch.stack([by_hand(model, image, 0.6) for image in images])
    torch.testing.assert_close(trace.output, expected, atol=1e-10, rtol=1e-10)
    assert trace.tokens_per_block == [int(9 * 13 * 0.6), int(4 * 6 * 0.6)]
    with pytest.raises(UnsupportedHost, match="LittleNet cannot take dynamicswin"):
        sieve(model, "dynamicswin(keep=0.5)", pretrained=False)


def test_classes_are_matched_exactly_and_the_later_host_counts() -> None:
    class Mine(LittleViT):
        pass

    @register_host(LittleViT)
    class Before(OpenLittleViT):
        pass

    with pytest.raises(UnsupportedHost, match=r"Mine cannot be sieved.*registered here: LittleViT; used as they are"):
        open_host(Mine())

    @register_host(LittleViT, Mine)
    class Later(OpenLittleViT):
        pass

    assert type(open_host(LittleViT())) is type(open_host(Mine())) is Later


def test_a_built_in_host_can_be_replaced() -> None:
    own = host_for(VisionTransformer)

    @register_host(VisionTransformer)
    class Other(own):  # type: ignore[misc,valid-type]
        pass

    model = timm.create_model("test_vit")
    assert type(open_host(model)) is Other
    assert type(sieve(model, "tome(r=2)").host) is Other


def test_a_class_may_be_named_by_text() -> None:
    register_host(f"{__name__}.LittleViT")(OpenLittleViT)
    assert type(open_host(LittleViT())) is OpenLittleViT
    package = __name__.partition(".")[0]
    register_host(f"{package}.LittleNet")(OpenLittleNet)  # in a module below
    assert type(open_host(LittleNet())) is OpenLittleNet
    assert host_for(type("LittleNet", (nn.Module,), {"__module__": f"{package}s.models"})) is None
    assert host_for(type("Net", (nn.Module,), {"__module__": f"{package}.models"})) is None


def test_what_cannot_be_registered_is_said() -> None:
    refused = UnsupportedHost
    with pytest.raises(refused, match=r"got no model class: write @register_host\(ModelClass\)"):
        register_host()
    with pytest.raises(refused, match=r"not OpenLittleViT: write @register_host\(ModelClass\) above"):
        register_host(OpenLittleViT)  # type: ignore[arg-type]  # without parentheses
    for wrong in (LittleViT(), "LittleViT", None):
        with pytest.raises(refused, match="takes model classes, or strings such as"):
            register_host(wrong)  # type: ignore[arg-type]
    for thing in (LittleViT, LittleViT()):
        with pytest.raises(refused, match="decorates a Host or a StagedHost, not LittleViT"):
            register_host(LittleViT)(thing)  # type: ignore[type-var]

    class Half(Host):
        def __init__(self, model: nn.Module) -> None:
            self.model = model

        def embed(self, images: Tensor) -> Tokens:
            raise NotImplementedError

    with pytest.raises(refused, match="Half lacks features, head, which every host must have"):
        register_host(LittleViT)(Half)
    assert host_for(LittleViT) is None


def test_a_host_that_does_not_say_what_it_must_is_refused() -> None:
    @register_host(LittleViT)
    class Silent(OpenLittleViT):
        def __init__(self, model: nn.Module) -> None:
            self.model, self.blocks = model, []

    with pytest.raises(UnsupportedHost, match="Silent does not set width: set it"):
        sieve(LittleViT())

    @register_host(LittleNet)
    class SilentNet(OpenLittleNet):
        def __init__(self, model: nn.Module) -> None:
            self.model = model

    with pytest.raises(UnsupportedHost, match="SilentNet does not set stages: set it"):
        sieve(LittleNet())


def test_it_is_public() -> None:
    assert tokensieve.register_host is register_host
    assert "register_host" in tokensieve.__all__
    assert {"register_host", "host_for"} <= set(tokensieve.hosts.__all__)
