"""A sieved model in the hands of transformers, peft, timm's wrapper and torch's distributed tools."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, distributed, nn

from tokensieve import UnsupportedHost, sieve

RECIPE = "tome(r=4)"
pytestmark = pytest.mark.slow


def tiny(**settings: Any) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=3, img_size=64, num_classes=4, **settings).eval()


def hf_vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=64, patch_size=8, num_labels=4)).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64)


def test_pipeline_of_transformers() -> None:
    from transformers import ViTImageProcessor, pipeline

    model, picture = hf_vit(), Image.new("RGB", (80, 72), (10, 200, 30))
    processor = ViTImageProcessor(size={"height": 64, "width": 64})
    said = pipeline("image-classification", model=sieve(model, ""), image_processor=processor)(picture)
    assert said == pipeline("image-classification", model=model, image_processor=processor)(picture)
    fast = sieve(model, RECIPE)
    best = pipeline("image-classification", model=fast, image_processor=processor)(picture, top_k=1)[0]
    probability = fast(**processor(picture, return_tensors="pt")).logits.softmax(1).max()
    assert best["score"] == pytest.approx(probability.item(), abs=1e-6)


def test_trainer_of_transformers_as_on_the_host(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    data = [{"pixel_values": torch.randn(3, 64, 64), "labels": index % 4} for index in range(8)]

    def trained(recipe: str | None) -> tuple[float, float, dict[str, Tensor]]:
        torch.manual_seed(3)
        model = hf_vit()
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3,
            gradient_accumulation_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        module = model if recipe is None else sieve(model, recipe)
        trainer = Trainer(model=module, args=arguments, train_dataset=data, eval_dataset=data)
        loss = trainer.train().training_loss
        return loss, trainer.evaluate()["eval_loss"], model.state_dict()

    dense, same, other = trained(None), trained("tome(r=0)"), trained(RECIPE)
    assert same[:2] == dense[:2]
    assert all(torch.equal(same[2][key], value) for key, value in dense[2].items())
    assert other[1] != dense[1]
    assert not torch.equal(other[2]["classifier.weight"], hf_vit().state_dict()["classifier.weight"])


def test_lora_of_peft_finds_the_hosts_layers(images: Tensor) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    model = tiny()
    dense = peft.get_peft_model(tiny(), peft.LoraConfig(r=2, target_modules=["qkv"]))
    fast = sieve(model, RECIPE)
    before = fast(images)
    tuned = peft.get_peft_model(fast, peft.LoraConfig(r=2, target_modules=["qkv"]))
    assert torch.equal(tuned(images), before)  # an adapter begins as nothing
    learned = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert learned == [name for name, parameter in dense.named_parameters() if parameter.requires_grad]
    tuned(images).sum().backward()
    assert all(p.grad is not None for p in tuned.parameters() if p.requires_grad)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter += 0.1
    assert not torch.allclose(tuned(images), before)
    assert torch.equal(tuned(images), fast(images))


def test_timms_wrapper_in_transformers(images: Tensor) -> None:
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    settings = {"depth": 3, "img_size": 64}
    config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=settings, num_labels=4)
    wrapper = TimmWrapperForImageClassification(config).eval()
    names = list(wrapper.state_dict())
    expected = sieve(wrapper.timm_model, RECIPE)(images)
    with pytest.raises(UnsupportedHost, match=r"model\.timm_model = sieve\(model\.timm_model"):
        sieve(wrapper, RECIPE)
    wrapper.timm_model = sieve(wrapper.timm_model, RECIPE)
    assert torch.equal(wrapper(pixel_values=images).logits, expected)
    assert list(wrapper.state_dict()) == names


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[Any]:
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


def test_sharding_the_sieved_model_as_a_whole(one_process: Any, images: Tensor) -> None:
    from torch.distributed.fsdp import fully_shard

    model = tiny()
    fast = sieve(model, RECIPE)
    expected = fast(images)
    fully_shard(fast, mesh=one_process)
    assert torch.equal(fast(images), expected)
    fast(images).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_sharding_blocks_that_a_recipe_opens_is_refused(one_process: Any, images: Tensor) -> None:
    from torch.distributed.fsdp import fully_shard

    model = tiny()
    fast = sieve(model, RECIPE)
    for block in model.blocks:
        fully_shard(block, mesh=one_process)
    with pytest.raises(UnsupportedHost, match=r"fully_shard\(\) was called on its blocks"):
        fast(images)


def test_distributed_checkpoints_have_the_hosts_names(one_process: Any) -> None:
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    model = tiny()
    fast = sieve(model, RECIPE)
    state = get_model_state_dict(fast)
    assert list(state) == list(model.state_dict())
    wanted = {key: value + 1 for key, value in state.items()}
    set_model_state_dict(fast, wanted)
    assert torch.equal(model.cls_token, wanted["cls_token"])


def test_a_trace_of_torchscript_answers_the_same(images: Tensor) -> None:
    fast = sieve(tiny(), "papr(keep=0.7, significance=centre) + tome(r=2)")
    traced = torch.jit.trace(fast, images)
    other = torch.randn(3, 3, 64, 64)
    assert torch.allclose(traced(other), fast(other), atol=1e-6)


def test_device_hooks_of_accelerate_are_refused_by_name(images: Tensor) -> None:
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    model = tiny()
    fast = sieve(model, RECIPE)
    hooks.add_hook_to_module(model.blocks[1], hooks.AlignDevicesHook("cpu"))
    with pytest.raises(UnsupportedHost, match=r"VisionTransformer\.blocks\.1 was placed by accelerate"):
        fast(images)
