"""A classifier opened with torch.fx, and its graph cut at a feature map; `fold.py` makes what it gives cheaper."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor, fx, nn

from ..errors import RecipeError, nearest

FORWARD_FEATURES = "forward_features"


@dataclass(frozen=True)
class Split:
    """A classifier in two: images -> features (B, K, h, w), and features -> logits if no other path leads there."""

    features: fx.GraphModule
    head: fx.GraphModule | None
    channels: int


def split(model: nn.Module, name: str, layer: int | str | None, images: Tensor) -> Split:
    """Cut `model` (in eval mode) at a feature map; `images` (1, 3, H, W), or a clip, is run through it to learn shapes.

    `layer` None is the last feature map before global pooling, an int counts the network's stages, a str names a
    sub-module. The sub-modules are shared with `model`, not copied. Raises `RecipeError` for a network that torch.fx
    cannot trace and for a layer that is not there or gives no feature map.
    """
    tracer = _Tracer()
    try:
        graph = tracer.follow(model, note_features=layer is None)
        watch = _Shapes(fx.GraphModule(model, graph))
        with torch.no_grad():
            logits = watch.run(images)
    except Exception as error:
        # Tracing runs the network's own Python, which may fail in any way.
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{name} cannot be traced ({line}): pass a module that maps images to features instead of its name."
        ) from error
    outputs = {key: node for key, node in tracer.outputs.items() if node in watch.shapes}
    node = _feature_node(model, name, layer, outputs, watch.shapes, images.ndim)

    images_in = next(node for node in graph.nodes if node.op == "placeholder")
    features = _subgraph(model, graph, images_in, node)
    if features is None:
        raise RecipeError(f"{name} needs more than images: pass a module that maps images to features.")
    end = next(node for node in graph.nodes if node.op == "output").args[0]
    answers = isinstance(end, fx.Node) and isinstance(logits, Tensor)
    head = _subgraph(model, graph, node, end) if answers else None
    if head is None and layer is None:
        raise RecipeError(
            f"{name} has no feature map that its whole answer passes through, as a ConvNet has: name one with layer=."
        )
    if head is not None:
        _without_inplace(head)
        with torch.no_grad():
            again = head(features(images))
        # An operation that works only by its side effect hangs on nothing in the graph and would be lost by the cut.
        if logits.isfinite().all() and (again - logits).abs().max() > 1e-4 * logits.abs().max():
            raise RecipeError(
                f"{name} cannot be cut at {layer or 'its last feature map'}: it changes tensors in place."
            )
    return Split(features, head, watch.shapes[node][1])


class _Tracer(fx.Tracer):
    """Traces through all modules but torch's and those that timm says cannot be traced; notes who made which node."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = tuple(get_notrace_modules())
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Linear layers and convolutions stay whole, in whatever dress a library puts them: CAM looks for their weights.
        return isinstance(m, (*self.leaves, nn.Linear, nn.Conv2d)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return self._note(self.path_of_module(m), super().call_module(m, forward, args, kwargs))

    def follow(self, model: nn.Module, note_features: bool) -> fx.Graph:
        forward_features = getattr(model, FORWARD_FEATURES, None)
        if not note_features or forward_features is None:
            return self.trace(model)
        # A method is no module: it is wrapped while the trace lasts to learn where its output lies in the graph.
        setattr(
            model,
            FORWARD_FEATURES,
            lambda *args, **kwargs: self._note(FORWARD_FEATURES, forward_features(*args, **kwargs)),
        )
        try:
            return self.trace(model)
        finally:
            delattr(model, FORWARD_FEATURES)

    def _note(self, name: str, output: Any) -> Any:
        if isinstance(output, fx.Proxy):
            self.outputs[name] = output.node
        return output


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor it makes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def _feature_node(
    model: nn.Module,
    name: str,
    layer: int | str | None,
    outputs: dict[str, fx.Node],
    shapes: dict[fx.Node, Any],
    rank: int,
) -> fx.Node:
    """The node that computes the feature map meant by `layer`, which has as many sides as the images."""
    maps = [key for key, node in outputs.items() if len(shapes[node]) == rank and min(shapes[node][2:]) > 1]
    stages = _stages(model, maps)
    if layer is None:
        target = FORWARD_FEATURES if FORWARD_FEATURES in outputs else _last_child(model, maps)
    elif isinstance(layer, int):
        if not -len(stages) <= layer < len(stages):
            listed = ", ".join(f"{index} {stage}" for index, stage in enumerate(stages))
            raise RecipeError(f"{name} has no stage {layer}; its stages are {listed}.")
        target = stages[layer]
    else:
        target = layer
    if target not in outputs:
        options = nearest(str(target), maps) or f"; its stages are {', '.join(stages)}"
        raise RecipeError(f"{name} has no layer {target!r} that makes a feature map{options}.")
    shape = shapes[outputs[target]]
    if target not in maps or (layer is None and getattr(model, "output_fmt", "NCHW") == "NHWC"):
        options = f"; layers that do: {', '.join(stages)}" if stages else ""
        raise RecipeError(
            f"The output of {target} of {name} has shape {shape}, not that of a ConvNet's feature map (B, K, h, w)"
            f"{options}."
        )
    return outputs[target]


def _stages(model: nn.Module, maps: list[str]) -> list[str]:
    """The sub-modules that an integer layer counts: timm's own list, or the children that make feature maps."""
    info = getattr(model, "feature_info", None)
    if info:
        return [stage["module"] for stage in info if stage["module"] in maps]
    features = getattr(model, "features", None)
    if isinstance(features, nn.Sequential):
        names = [f"features.{key}" for key, _ in features.named_children()]
    else:
        names = [key for key, _ in model.named_children()]
    return [key for key in names if key in maps]


def _last_child(model: nn.Module, maps: list[str]) -> str:
    """The last top-level child that makes a feature map and does not pool it."""
    pools = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
    children = [key for key, child in model.named_children() if key in maps and not isinstance(child, pools)]
    return children[-1] if children else FORWARD_FEATURES


def _subgraph(model: nn.Module, graph: fx.Graph, start: fx.Node, end: fx.Node) -> fx.GraphModule | None:
    """The graph that computes `end` from `start` alone; None where it needs the images by another path."""
    nodes, todo = {start}, [end]
    while todo:
        node = todo.pop()
        if node not in nodes:
            if node.op == "placeholder":
                return None
            nodes.add(node)
            todo.extend(node.all_input_nodes)
    part = fx.Graph()
    copies = {start: part.placeholder("features" if start.op != "placeholder" else "images")}
    for node in graph.nodes:
        if node in nodes and node is not start:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return fx.GraphModule(model, part).eval()


def _without_inplace(head: fx.GraphModule) -> None:
    """Keep the head's hands off the features, which are its caller's."""
    for node in head.graph.nodes:
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
        if node.op == "call_module" and getattr(head.get_submodule(node.target), "inplace", False):
            module: Any = copy.copy(head.get_submodule(node.target))
            module.inplace = False
            head.set_submodule(node.target, module)
    head.recompile()
