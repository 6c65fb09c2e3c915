"""transformers' hosts: opened at the right seams, pooled right after merging, and called as they are called there."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.hf_hosts import assert_asking_agrees, assert_verbs_compose, hf_forms, hf_images, in_pairs
from tokensieve import InputError, UnsupportedHost, sieve
from tokensieve.hosts import open_host

pytest.importorskip("transformers")

FORMS = hf_forms()
PER_TOKEN = ("last_hidden_state", "mask", "ids_restore")
each = pytest.mark.parametrize("name", FORMS)


def close(name: str) -> dict[str, float]:
    """How close two ways come in float64; ViT's eager attention takes its softmax in float32 whatever it is given."""
    return {"atol": 1e-6, "rtol": 1e-5} if name == "vit-eager" else {"atol": 1e-10, "rtol": 1e-10}


def dense(model: nn.Module, images: Tensor, **words: Any) -> Any:
    """The host's own output; MAE, which shuffles, gets the noise that leaves patches in order."""
    if type(model).__name__ == "ViTMAEModel":
        words["noise"] = torch.arange(25.0).expand(len(images), -1)
    with torch.no_grad():
        return model(images, **words)


def sieved(model: nn.Module, recipe: str, images: Tensor, **words: Any) -> Any:
    with torch.no_grad():
        return sieve(model, recipe)(images, **words)


@each
def test_identity_settings_are_the_host_bit_for_bit_and_change_nothing(name: str) -> None:
    model = FORMS[name]()
    images, state, own = hf_images(model), {k: v.clone() for k, v in model.state_dict().items()}, set(model.__dict__)
    whole = dense(model, images)
    for recipe in ("", "papr(keep=1)", "tome(r=0)"):
        output = sieved(model, recipe, images)
        assert type(output) is type(whole)
        assert list(output) == list(whole)
        assert all(torch.equal(output[field], whole[field]) for field in whole)
    sieved(model, "random(keep=0.5) + tome(r=3)", images)
    again = dense(model, images)
    assert all(torch.equal(again[field], whole[field]) for field in whole)
    assert set(model.__dict__) == own
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert list(sieve(model).state_dict()) == list(state)


@each
def test_the_verbs_compose_to_the_block(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(hf_images(model).double())
        few = tokens.select(torch.tensor([[0, 3, 4, 9, 11], [1, 2, 5, 7, 20]]))
        for block in host.blocks:
            assert block.closed is None
            for some in (tokens, few):
                assert_verbs_compose(block, some, **close(name))


@each
def test_only_some_may_ask(name: str) -> None:
    model = FORMS[name]().double()
    host = open_host(model)
    with torch.no_grad():
        tokens = host.embed(hf_images(model).double())
        for some in (tokens, tokens.select(torch.tensor([[0, 3, 4, 9, 11], [1, 2, 5, 7, 20]]))):
            assert_asking_agrees(host.blocks[1], some)


def encoder_of(model: nn.Module) -> Any:
    for part in ("vit", "deit", "dinov2", "dinov2_with_registers", "vision_model"):
        if hasattr(model, part):
            return getattr(model, part)
    return model


def expected(model: Any, x: Tensor, prefix: int) -> dict[str, Tensor]:
    """What the host says of final tokens (B, N, d), composed by hand."""
    kind, encoder, first = type(model).__name__, encoder_of(model), x[:, 0]
    mean = x[:, prefix:].mean(1)
    if kind.endswith("WithTeacher"):
        both = {
            "cls_logits": model.cls_classifier(first),
            "distillation_logits": model.distillation_classifier(x[:, 1]),
        }
        return {"logits": sum(both.values()) / 2, **both}
    if kind.startswith("Dinov2") and kind.endswith("Classification"):
        return {"logits": model.classifier(torch.cat([first, mean], dim=1))}
    if kind.endswith("Classification"):
        return {"logits": model.classifier(mean if kind.startswith(("CLIP", "Siglip")) else first)}
    if kind == "CLIPVisionModelWithProjection":
        return {"image_embeds": model.visual_projection(encoder.post_layernorm(first)), "last_hidden_state": x}
    pooled = {"last_hidden_state": x}
    if kind in ("ViTModel", "DeiTModel") and encoder.pooler is not None:
        pooled["pooler_output"] = torch.tanh(encoder.pooler.dense(first))
    if kind.startswith("DINOv3") or kind.startswith("Dinov2"):
        pooled["pooler_output"] = first
    if kind == "CLIPVisionModel":
        pooled["pooler_output"] = encoder.post_layernorm(first)
    if kind == "SiglipVisionModel" and encoder.use_head:
        pooled["pooler_output"] = encoder.head(x)
    return pooled


def masked(encoder: nn.Module, images: Tensor, mask: Tensor) -> Any:
    """The host's own output with a mask on its keys, given below its forward where an older version takes none."""
    if not type(encoder).__name__.startswith("Dinov2"):
        return dense(encoder, images, attention_mask=mask)
    if "attention_mask" in inspect.signature(type(encoder.encoder.layer[0]).forward).parameters:
        return dense(encoder, images, attention_mask=mask)
    attend = F.scaled_dot_product_attention

    def attend_masked(*parts: Tensor, **words: Any) -> Tensor:
        return attend(*parts, **{**words, "attn_mask": mask})

    with mock.patch.object(F, "scaled_dot_product_attention", attend_masked):
        return dense(encoder, images)


@each
def test_dropping_is_the_hosts_own_forward_with_those_patches_masked(name: str) -> None:
    model = FORMS[name]().double()
    images = hf_images(model, 3).double()
    fast = sieve(model, "random(keep=0.5)")
    with torch.no_grad():
        trace = fast.trace(images)
        prefix, kept = fast.host.prefix, trace.tokens.positions
        there = torch.zeros(3, 1, 1, trace.tokens.source.shape[1] + prefix, dtype=torch.float64)
        there[:, 0, 0, prefix:] = -torch.inf
        there[:, 0, 0, prefix:].scatter_(1, kept, 0)
        whole = masked(encoder_of(model), images, there).last_hidden_state
        index = torch.cat([torch.arange(prefix).expand(3, -1), kept + prefix], dim=1)
        last = whole.gather(1, index[..., None].expand(-1, -1, whole.shape[2]))
        outputs = expected(model, last, prefix)
    assert kept.shape[1] < trace.tokens.source.shape[1]
    assert set(outputs) == set(trace.output) - {"mask", "ids_restore"}
    for field, value in outputs.items():
        torch.testing.assert_close(trace.output[field], value, **close(name))
    if "mask" in trace.output:
        assert torch.equal(trace.output.mask.sum(1), torch.full((3,), 25.0 - kept.shape[1]))
        assert torch.equal(trace.output.ids_restore.argsort(1)[:, : kept.shape[1]], kept)


@each
def test_equal_patches_merge_without_a_trace(name: str) -> None:
    """Without positions, merged copies change nothing: attention counts them, and so does every pooling."""
    model = FORMS[name]().double()
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if "position" in parameter:
                value.zero_()
        if hasattr(model, "rope_embeddings"):
            model.rope_embeddings.inv_freq.zero_()
        images = in_pairs(hf_images(model, 3).double())
        trace = sieve(model, "tome(r=[5, 0, 0])").trace(images)
    whole = dense(model, images)
    prefix = trace.tokens.prefix
    assert trace.tokens_per_block == [trace.tokens.source.shape[1] + prefix - 5] * 3
    assert set(trace.output) == set(whole)
    for field in whole:
        mine, theirs = trace.output[field], whole[field]
        if field in PER_TOKEN:
            mine, theirs = (mine[:, :prefix], theirs[:, :prefix]) if field == PER_TOKEN[0] else (mine[:0], theirs[:0])
        torch.testing.assert_close(mine, theirs, **close(name))


@each
def test_merging_in_every_block_leaves_what_it_says(name: str) -> None:
    model = FORMS[name]()
    host, images = open_host(model), hf_images(model)
    trace = sieve(model, "tome(r=3)").trace(images)
    start = trace.tokens.source.shape[1] + host.prefix
    assert trace.tokens_per_block == [start - 3, start - 6, start - 9]
    assert all(value.isfinite().all() for value in trace.output.values())


@pytest.mark.parametrize("name", ["vit", "deit-teacher"])
def test_a_head_of_prefix_tokens_alone_can_be_read_out(name: str) -> None:
    model = FORMS[name]().double()
    images = hf_images(model).double()
    whole, output = dense(model, images), sieved(model, "readout()", images)
    for field in whole:
        torch.testing.assert_close(output[field], whole[field], **close(name))


def test_a_head_that_reads_patches_cannot_be_read_out() -> None:
    with pytest.raises(UnsupportedHost, match="Dinov2ForImageClassification cannot take readout"):
        sieve(FORMS["dinov2"](), "readout()")


@pytest.mark.parametrize("name", ["dinov2-registers", "dinov3-model", "clip-classifier", "mae"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_tokens_that_stand_for_nothing_do_not_count(name: str, adaptive: bool) -> None:
    """ATS fills images up to one length: what is filled up changes no average and no attention."""
    model = FORMS[name]().double()
    images = hf_images(model, 3).double()
    recipe = f"ats(tokens=9, layers=1:2, adaptive={adaptive})"
    together, alone = sieved(model, recipe, images), [sieved(model, recipe, image[None]) for image in images]
    for field in set(together) - set(PER_TOKEN):
        torch.testing.assert_close(together[field], torch.cat([one[field] for one in alone]), **close(name))
    assert together[next(iter(together))].isfinite().all()


def test_what_is_known_of_a_host() -> None:
    facts = {
        name: (host.prefix, host.class_token, host.reads_prefix, host.width, host.cannot_merge)
        for name, host in ((name, open_host(form())) for name, form in FORMS.items())
    }
    assert facts["vit"] == (1, True, True, 32, None)
    assert facts["vit-model"] == (1, True, False, 32, None)
    assert facts["deit-teacher"] == (2, True, True, 32, None)
    assert facts["dinov2"] == (1, True, False, 32, None)
    assert facts["dinov2-registers"] == (4, True, False, 32, None)
    assert facts["dinov3-model"] == (5, True, False, 32, None)
    assert facts["clip-projection"] == (1, True, False, 32, None)
    assert facts["siglip-vision"] == (0, False, False, 32, None)


def test_it_is_called_as_the_host_is() -> None:
    model = FORMS["vit"]()
    images, labels = hf_images(model), torch.tensor([1, 5])
    fast = sieve(model, "tome(r=3)")
    with torch.no_grad():
        whole = fast(images)
        assert torch.equal(fast(pixel_values=images).logits, whole.logits)
        assert torch.equal(fast(images, return_dict=False)[0], whole.logits)
        loss = fast(pixel_values=images, labels=labels).loss
        torch.testing.assert_close(loss, nn.functional.cross_entropy(whole.logits, labels))
        assert isinstance(sieve(FORMS["vit-model"]())(images, return_dict=False), tuple)
    for words, reason in (
        ({"output_attentions": True}, "cannot return output_attentions"),
        ({"pixel_values": images}, "images once"),
        ({"attention_mask": labels}, "takes no attention_mask= once it is sieved"),
        ({"lables": labels}, "labels"),
    ):
        with pytest.raises(InputError, match=reason):
            fast(images, **words)
    with pytest.raises(InputError, match="images once"):
        fast()


def test_a_tensor_host_takes_images_alone() -> None:
    import timm

    fast = sieve(timm.create_model("vit_tiny_patch16_224", depth=1, embed_dim=32, num_heads=2))
    with pytest.raises(InputError, match=r"alone, not with pixel_values="):
        fast(pixel_values=torch.zeros(1, 3, 224, 224))
    with pytest.raises(InputError, match="alone"):
        fast()


@pytest.mark.parametrize("name", ["vit", "deit", "clip-projection", "siglip-vision", "mae"])
def test_other_sizes_are_taken_where_they_are_asked_for(name: str) -> None:
    model = FORMS[name]()
    images = torch.randn(2, 3, 48, 40)
    noise = {"noise": torch.arange(30.0).expand(2, -1)} if name == "mae" else {}
    with torch.no_grad():
        whole = model(images, interpolate_pos_encoding=True, **noise)
        output = sieve(model)(images, interpolate_pos_encoding=True)
        assert all(torch.equal(output[field], whole[field]) for field in whole)
        assert sieve(model, "random(keep=0.5)").trace(images).tokens.grid == (6, 5)
    with pytest.raises(InputError, match=r"48 x 40 pixels.* reads 40 x 40.*interpolate_pos_encoding=True"):
        sieve(model)(images)


@pytest.mark.parametrize("name", ["dinov2", "dinov2-registers-model", "dinov3-model"])
def test_hosts_of_any_size_take_any_size(name: str) -> None:
    model = FORMS[name]()
    images = torch.randn(2, 3, 48, 56)
    with torch.no_grad():
        output, whole = sieve(model)(images), model(images)
    assert all(torch.equal(output[field], whole[field]) for field in whole)


def test_what_is_refused_says_what_would_work() -> None:
    import transformers as hf

    for model, reason in (
        (hf.CLIPModel, r"sieve its model\.vision_model"),
        (hf.ViTMAEForPreTraining, r"sieve model\.vit"),
        (hf.ResNetModel, "no opener is written for transformers"),
        (hf.SwinForMaskedImageModeling, r"sieve model\.swin"),
    ):
        refused = pytest.raises(UnsupportedHost, match=f"{model.__name__} cannot be sieved.*{reason}")
        with torch.device("meta"), refused:
            open_host(model(model.config_class()))


def test_mae_must_not_hide_patches_by_itself() -> None:
    model = FORMS["mae"]()
    model.config.mask_ratio = 0.75
    with pytest.raises(UnsupportedHost, match=r"hides 75% of the patches.*mask_ratio = 0"):
        sieve(model)


def test_a_subclass_or_an_unknown_attention_is_not_guessed() -> None:
    import transformers as hf

    class Mine(hf.ViTModel):
        pass

    model = FORMS["vit"]()
    with pytest.raises(UnsupportedHost, match="Mine cannot be sieved"):
        open_host(Mine(model.config))
    model.config._attn_implementation = "my_own"
    with pytest.raises(UnsupportedHost, match=r'runs as "my_own".*set_attn_implementation'):
        sieve(model, "tome(r=3)")
    model = FORMS["vit"]()
    inner = type(model.vit.layers[1].attention)
    model.vit.layers[1].attention.__class__ = type("Mine", (inner,), {})
    sieve(model, "random(keep=0.5)")(hf_images(model))
    with pytest.raises(UnsupportedHost, match="in block 1, its attention Mine is unknown"):
        sieve(model, "tome(r=3)")


def test_a_new_classifier_is_used_at_once() -> None:
    model = FORMS["vit"]()
    fast = sieve(model, "tome(r=3)")
    model.classifier = nn.Linear(32, 3)
    assert fast(hf_images(model)).logits.shape == (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit", "dinov3-model", "siglip-vision"])
def test_it_compiles_in_one_graph(name: str) -> None:
    model = FORMS[name]()
    images = hf_images(model)
    fast = sieve(model, "random(keep=0.5) + tome(r=3)")
    with torch.no_grad():
        whole, compiled = fast(images), torch.compile(fast, fullgraph=True, backend="eager")(images)
    assert type(compiled) is type(whole)
    for field in whole:
        torch.testing.assert_close(compiled[field], whole[field])


@pytest.mark.parametrize("name", ["vit", "dinov2-model", "clip-vision"])
def test_a_dense_call_that_notes_its_outputs_leaves_the_host_open(name: str) -> None:
    """transformers leaves hooks of its own behind, which are nobody's."""
    model = FORMS[name]()
    images, fast = hf_images(model), sieve(model, "tome(r=3)")
    before = sieved(model, "tome(r=3)", images)
    dense(model, images, output_hidden_states=True)
    with torch.no_grad():
        for field, value in fast(images).items():
            assert torch.equal(value, before[field])


def test_gradients_reach_the_first_layer() -> None:
    model = FORMS["vit"]()
    fast = sieve(model, "random(keep=0.5) + tome(r=3)").train()
    fast(hf_images(model), labels=torch.tensor([0, 1])).loss.backward()
    assert model.vit.embeddings.patch_embeddings.projection.weight.grad.abs().sum() > 0


def test_importing_tokensieve_does_not_import_transformers() -> None:
    code = "import sys, tokensieve; assert not {'transformers', 'open_clip'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
