"""mmaction2's checkpoints of VideoMAE open as transformers' model, and give what mmaction2's gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from tests.reference.videomae import forward, mmaction2_state
from tokensieve.errors import InputError
from tokensieve.zoo import create

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
TINY = {**SIZES, "image_size": 32, "num_frames": 4, "num_labels": 3}


def opened(file: Path, state: dict[str, torch.Tensor], **args: int) -> torch.nn.Module:
    torch.save({"state_dict": state, "meta": {"epoch": 1}}, file)
    return create("videomae_base", weights=str(file), args={**TINY, **args}).model.eval()


@torch.no_grad()
@pytest.mark.parametrize("bare", [False, True])
def test_the_answers_are_mmaction2s(tmp_path: Path, bare: bool) -> None:
    state = mmaction2_state()
    named = {name.removeprefix("backbone."): value for name, value in state.items()} if bare else state
    model = opened(tmp_path / "mae.pth", named).double()
    clips = torch.randn(2, 4, 3, 32, 32, dtype=torch.float64)
    expected = torch.stack([forward(state, clip, heads=2) for clip in clips])
    # The table of positions is float32 in both.
    torch.testing.assert_close(model(clips).logits, expected, rtol=1e-5, atol=1e-5)


def test_another_table_of_positions_is_refused(tmp_path: Path) -> None:
    state = mmaction2_state()
    with pytest.raises(InputError, match=r"for 8 patches of width 24, and the model reads 16 .*num_frames"):
        opened(tmp_path / "a.pth", state, num_frames=8)
    state["backbone.pos_embed"] = state["backbone.pos_embed"] + 0.1
    with pytest.raises(InputError, match="positions were learned"):
        opened(tmp_path / "b.pth", state)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = mmaction2_state()
    with pytest.raises(InputError, match=r"classifier\.\w+ has another shape"):
        opened(tmp_path / "a.pth", state, num_labels=7)
    with pytest.raises(InputError, match=r"the model has no blocks\.0\.gamma_1"):
        opened(tmp_path / "b.pth", {**state, "backbone.blocks.0.gamma_1": torch.ones(24)})
    del state["backbone.blocks.1.attn.proj.bias"]
    with pytest.raises(InputError, match=r"the file has no videomae\.encoder\.layer\.1\.attention\.output\.dense"):
        opened(tmp_path / "c.pth", state)
