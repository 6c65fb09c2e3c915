"""`tokensieve heal`: weights and a recipe that other commands take, figures before and after, or a sentence."""

import json

import pytest
import torch

pytestmark = pytest.mark.slow

FILES = {"recipe": "best.json", "weights": "model.safetensors"}
WORDS = ["--model", "nano_vit", "--data", "scenes", "--limit", 40, "--recipe", "tome(r=16)", "--epochs", 2]
WORDS += ["--views", 2, "--batch", 9]


def test_it_writes_what_other_commands_take(run, tmp_path):
    out = tmp_path / "healed"
    result = run("heal", *WORDS, "--trainable", "norms", "--lr", 1e-3, "--test-data", "scenes", "--out", out, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["steps"] == 8
    assert told["settings"]["trainable"] == "norms"
    assert told["out"] == {name: str(out / file) for name, file in FILES.items()}
    assert told["test_figures"]["after"]["change"].keys() == {"top1"}
    assert "held-out agreement" in result.err
    recipe = ["--recipe", out / "best.json", "--limit", 40, "--json"]
    weights = ["--weights", out / "model.safetensors"]
    found = run("eval", "--model", "nano_vit", "--data", "scenes", *weights, *recipe)
    assert found.code == 0, found.err
    again = run("heal", *WORDS, "--trainable", "norms", "--lr", 1e-3, "--test-data", "scenes", "--out", out)
    assert again.code == 0, again.err
    assert "held-out pictures, before" in again.out
    assert "test pictures, before" in again.out
    assert "top-1 against dense" in again.out
    assert "model.safetensors" in "".join(again.out.split())  # a long folder breaks lines anywhere


def test_what_makes_no_sense_is_said(refused, run, tmp_path):
    out = ["--out", tmp_path / "healed"]
    assert "--classes maps the folders of --test-data" in refused("heal", *WORDS, *out, "--classes", "x.json")
    assert "trainable must be one of all, lora, norms" in refused("heal", *WORDS, *out, "--trainable", "most")
    (tmp_path / "healed").mkdir()
    torch.save({"config": {}, "identity": ""}, tmp_path / "healed" / "model.checkpoint.pt")
    result = run("heal", *WORDS, *out)
    assert (result.code, result.out) == (2, "")
    assert "belongs to another training" in result.err
