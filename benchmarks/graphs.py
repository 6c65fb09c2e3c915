"""Which methods compile as one graph and can be written as ONNX? -> results/graphs.csv.

    python benchmarks/graphs.py [--only METHOD ...]    # other rows of the file stay

On a small ViT, on segmenters around it, on models with stages, and on models that read videos; images of 64 x 64, clips
of 4 of them, random weights.

`torch.compile(fullgraph=True)` with inductor at two batch sizes, and `export_onnx` with a dynamic batch, checked
against PyTorch at batch 1 and 5; for each the largest difference, or the sentence with which it was refused.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from results import update, write
from tokensieve import Sieved, SieveError, export_onnx, segmentation, sieve
from tokensieve.data.inputs import InputSpec
from tokensieve.zoo import create

DEPTH = 4
RECIPES = {
    "papr": "papr(keep=0.6, proposal=nano_convnet, proposal_norm=shared)",
    "random": "random(keep=0.6)",
    "tome": "tome(r=4)",
    "tofu": "tofu(r=4)",
    "gtp": "gtp(r=4)",
    "gtp, sparse": "gtp(r=4, sparsity=0.6)",
    "evit": "evit(keep=0.7)",
    "ats": "ats(tokens=40)",
    "ats, fixed": "ats(tokens=40, adaptive=False)",
    "dynamicvit": "dynamicvit(keep=0.7)",
    "pitome": "pitome(r=4)",
    "diffrate": "diffrate(drop=2, merge=2)",
    "mctf": "mctf(r=4)",
    "guarded": "guarded(r=4, drop=[0, 0, 4, 4])",
    "readout": "readout()",
    "patch_slimming A": "patch_slimming(patches={nested})",
    "patch_slimming B": "patch_slimming(patches={nested}, form=B)",
    "four of them": "papr(keep=0.8, significance=centre) + evit(keep=0.9, layers=(1,)) + tome(r=4) + readout()",
    "dtop, budget on segvit": "dtop(budget=(0.7, 0.4), keep_per_class=2)",
    "dtop, budget on setr": "dtop(budget=(0.7, 0.4), keep_per_class=2)",
    "dtop on segvit": "dtop(threshold=0.3, keep_per_class=2)",
    "papr on convnext_atto": "papr(keep=0.65)",
    "papr on swin_tiny_patch4_window7_224": "papr(keep=0.65)",
    "papr on videomae_base": "papr(keep=0.45, proposal=x3d_s, proposal_norm=shared, proposal_size=(4, 32, 32))",
    "motion on videomae_base": "papr(keep=0.45, significance=motion)",
    "papr on vivit_base": "papr(keep=0.45, proposal=x3d_s, proposal_norm=shared, proposal_size=(4, 32, 32))",
    "papr on vjepa2_large_ssv2": "papr(keep=0.45, proposal=x3d_s, proposal_norm=shared, proposal_size=(4, 32, 32))",
    "papr on swin3d_t": "papr(keep=0.65, proposal=x3d_s, proposal_norm=shared, proposal_size=(4, 32, 32))",
}
SIZE, FRAMES = 64, 4
TINY = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "num_labels": 10}
VIDEO: dict[str, dict[str, Any]] = {
    "videomae_base": {**TINY, "intermediate_size": 96, "image_size": SIZE, "num_frames": FRAMES},
    "vivit_base": {**TINY, "intermediate_size": 96, "image_size": SIZE, "num_frames": FRAMES},
    "vjepa2_large_ssv2": {
        **TINY, "hidden_size": 60, "mlp_ratio": 2, "crop_size": SIZE, "frames_per_clip": FRAMES,
        "num_pooler_layers": 1, "pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1,
    },
    "swin3d_t": {},
}  # fmt: skip
"""Models that read videos, and the settings that make them small."""
SEGMENTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "segvit": lambda vit: segmentation.segvit(vit, 6, exits=(1, 2, 3), width=32, heads=2, layers=2),
    "setr": lambda vit: segmentation.setr(vit, 6, form="naive", levels=(1, 2, 3), channels=32),
}


def tried(what: Callable[[], float]) -> tuple[bool, float | None, str]:
    """Whether it worked, the largest difference, and else why not."""
    try:
        return True, float(what()), ""
    except SieveError as error:
        return False, None, str(error)
    except Exception as error:  # whatever a compiler says of a graph it cannot have is the finding
        return False, None, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def host_of(name: str) -> nn.Module:
    """The host that a row names, by default the small ViT."""
    torch.manual_seed(0)
    _, _, host = name.partition(" on ")
    if host in VIDEO:
        return create(host, pretrained=False, args=VIDEO[host]).model
    if host not in ("", *SEGMENTERS):
        settings = {"img_size": SIZE} if host.startswith("swin") else {}
        return timm.create_model(host, **settings).eval()
    vit = VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=64, depth=DEPTH, num_heads=2, num_classes=10)
    if not host:
        return vit.eval()
    model = SEGMENTERS[host](vit).eval()
    for name, parameter in model.named_parameters():  # heads that tell tokens apart
        if parameter.ndim > 1 and "head" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def compiled(fast: Sieved) -> float:
    torch.compiler.reset()
    graph = torch.compile(fast, fullgraph=True)
    pairs = [(logits(graph(images)), logits(fast(images))) for images in (draw(fast, 2), draw(fast, 3))]
    return max(float((ours - theirs).abs().max()) for ours, theirs in pairs)


def exported(fast: Sieved) -> float:
    with tempfile.TemporaryDirectory() as folder:
        done = export_onnx(fast, Path(folder) / "fast.onnx", reads(fast), mean=[0.5] * 3, std=[0.5] * 3)
    return max(done.differences.values())


def logits(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output.logits


def reads(fast: Sieved) -> InputSpec:
    """An image, or a clip, of what its host is built for."""
    sides = {"C": 3, "T": FRAMES, "H": SIZE, "W": SIZE}
    layout = InputSpec.of(fast).layout
    return InputSpec(tuple(sides[side] for side in layout), layout)


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="*")
    args = parser.parse_args()
    nested = tuple(tuple(range(0, 64, step)) for step in (1, 2, 2, 4))
    rows = []
    for name, text in RECIPES.items():
        if args.only and name not in args.only:
            continue
        norm = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
        fast = sieve(host_of(name), text.replace("{nested}", str(nested)), pretrained=False, **norm)

        row: dict[str, Any] = {"method": name, "recipe": text}
        for kind, what in (("compile", compiled), ("onnx", exported)):
            row[kind], row[f"{kind}_difference"], row[f"{kind}_refusal"] = tried(partial(what, fast))
        rows.append(row)
        print(row, flush=True)
    update("graphs.csv", rows, "method") if args.only else write("graphs.csv", rows)
    return 0


def draw(fast: Sieved, count: int) -> Tensor:
    return torch.randn(count, *reads(fast), generator=torch.Generator().manual_seed(count))


if __name__ == "__main__":
    sys.exit(main())
