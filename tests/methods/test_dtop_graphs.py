"""DToP's static-budget form as a graph: compiled without a break, and as ONNX."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.torch_version import TorchVersion

from tests.methods.test_dtop import CLASSES, seeded, vit
from tokensieve import export_onnx, segmentation, sieve

pytestmark = pytest.mark.slow

SIZE = (3, 40, 56)
BUDGETS = {
    "segvit": "dtop(budget=(0.6, 0.3), keep_per_class=1)",
    "setr": "dtop(budget=0.6, keep_per_class=1)",
}


def segmenter(form: str, depth: int = 3) -> nn.Module:
    """Of few blocks, all with an exit: what takes time is their number."""
    if form == "setr":
        return seeded(segmentation.setr(vit(depth=2), CLASSES, form="naive", levels=(0, 1), channels=8)).float()
    return seeded(
        segmentation.segvit(vit(depth=depth), CLASSES, exits=tuple(range(depth)), width=8, heads=2, layers=1)
    ).float()


def images(batch: int) -> Tensor:
    return torch.randn(batch, *SIZE, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize(
    ("form", "recipe"), [("setr", BUDGETS["setr"]), ("segvit", BUDGETS["setr"]), ("segvit", "dtop(threshold=0.3)")]
)
@torch.no_grad()
def test_exits_compile_as_one_graph(form: str, recipe: str) -> None:
    fast = sieve(segmenter(form, depth=2), recipe)
    graph = torch.compile(fast, fullgraph=True, backend="aot_eager")
    for batch in (2, 3):
        torch.testing.assert_close(graph(images(batch)), fast(images(batch)), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    TorchVersion(torch.__version__) < (2, 9), reason="older versions of torch cannot write these graphs as ONNX"
)
@pytest.mark.parametrize("form", BUDGETS)
@torch.no_grad()
def test_a_static_budget_is_written_as_onnx(form: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = segmenter(form)
    fast, path = sieve(model, BUDGETS[form]), tmp_path / "fast.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries
        done = export_onnx(fast, path, SIZE, mean=[0.5] * 3, std=[0.5] * 3)
    assert max(done.differences.values()) <= 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told = torch.from_numpy(session.run(None, {"images": images(3).numpy()})[0])
    torch.testing.assert_close(told, fast(images(3)), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(told, model(images(3)), rtol=1e-3, atol=1e-3), "tokens have left"
