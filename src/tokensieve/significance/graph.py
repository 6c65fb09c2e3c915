"""Traces a classifier with torch.fx and splits its graph at a feature map; `fold.py` then optimises the parts."""

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
    """A classifier split in two: `features` maps images to features (B, K, h, w), `head` features to logits.

    `head` is None if the logits do not depend on these features alone.
    """

    features: fx.GraphModule
    head: fx.GraphModule | None
    channels: int


def split(model: nn.Module, name: str, layer: int | str | None, images: Tensor) -> Split:
    """Split a model at a feature map. Submodules are shared with the model, not copied.

    Args:
        model: the classifier, in eval mode.
        name: its name, for errors.
        layer: None is the last feature map before global pooling, an int the index of a stage, a str the name of a
            submodule.
        images: (1, 3, H, W), or a clip, with which the model is run to find the shapes of its feature maps.

    Raises:
        RecipeError: torch.fx cannot trace the network; the layer does not exist or does not return a feature map.
    """
    tracer = _Tracer()
    try:
        graph = tracer.follow(model, record_features=layer is None)
        interpreter = _Shapes(fx.GraphModule(model, graph))
        with torch.no_grad():
            logits = interpreter.run(images)
    except Exception as error:
        # Tracing runs the network's own Python code, which can raise any exception.
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"{name} cannot be traced ({line}): pass a module that maps images to features instead of its name."
        ) from error
    outputs = {key: node for key, node in tracer.outputs.items() if node in interpreter.shapes}
    node = _feature_node(model, name, layer, outputs, interpreter.shapes, images.ndim)

    images_in = next(node for node in graph.nodes if node.op == "placeholder")
    features = _subgraph(model, graph, images_in, node)
    if features is None:
        raise RecipeError(f"{name} has other inputs than images: pass a module that maps images to features.")
    end = next(node for node in graph.nodes if node.op == "output").args[0]
    returns_tensor = isinstance(end, fx.Node) and isinstance(logits, Tensor)
    head = _subgraph(model, graph, node, end) if returns_tensor else None
    if head is None and layer is None:
        raise RecipeError(
            f"{name} has no last feature map from which its whole output is computed, as a ConvNet has: choose a "
            "layer with layer=."
        )
    if head is not None:
        _without_inplace(head)
        with torch.no_grad():
            split_logits = head(features(images))
        # An operation that acts only by a side effect has no edges in the graph, and would be lost in the split.
        if logits.isfinite().all() and (split_logits - logits).abs().max() > 1e-4 * logits.abs().max():
            raise RecipeError(
                f"{name} cannot be cut at {layer or 'its last feature map'}: it changes tensors in place."
            )
    return Split(features, head, interpreter.shapes[node][1])


class _Tracer(fx.Tracer):
    """Traces into all modules except torch's own and those that timm lists as not traceable.

    `outputs` records the node of each submodule's output, by the submodule's name.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = tuple(get_notrace_modules())
        self.outputs: dict[str, fx.Node] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # Subclasses of linear layers and convolutions are not traced into either: CAM needs their weights.
        return isinstance(m, (*self.leaves, nn.Linear, nn.Conv2d)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        return self._record(self.path_of_module(m), super().call_module(m, forward, args, kwargs))

    def follow(self, model: nn.Module, record_features: bool) -> fx.Graph:
        """Trace the model; with `record_features` also record the output of its method `forward_features`."""
        forward_features = getattr(model, FORWARD_FEATURES, None)
        if not record_features or forward_features is None:
            return self.trace(model)
        # A method is not a module, so it is wrapped during the trace to record the node of its output.
        setattr(
            model,
            FORWARD_FEATURES,
            lambda *args, **kwargs: self._record(FORWARD_FEATURES, forward_features(*args, **kwargs)),
        )
        try:
            return self.trace(model)
        finally:
            delattr(model, FORWARD_FEATURES)

    def _record(self, name: str, output: Any) -> Any:
        if isinstance(output, fx.Proxy):
            self.outputs[name] = output.node
        return output


class _Shapes(fx.Interpreter):
    """Runs a graph and records the shape of every tensor in it."""

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
    """The node that computes the feature map selected by `layer`; a feature map has the rank of the images."""
    maps = [key for key, node in outputs.items() if len(shapes[node]) == rank and min(shapes[node][2:]) > 1]
    stages = _stages(model, maps)
    if layer is None:
        target = FORWARD_FEATURES if FORWARD_FEATURES in outputs else _last_child(model, maps)
    elif isinstance(layer, int):
        if not -len(stages) <= layer < len(stages):
            stage_list = ", ".join(f"{index} {stage}" for index, stage in enumerate(stages))
            raise RecipeError(f"{name} has no stage {layer}; its stages are {stage_list}.")
        target = stages[layer]
    else:
        target = layer
    if target not in outputs:
        options = nearest(str(target), maps) or f"; its stages are {', '.join(stages)}"
        raise RecipeError(f"{name} has no layer {target!r} that returns a feature map{options}.")
    shape = shapes[outputs[target]]
    if target not in maps or (layer is None and getattr(model, "output_fmt", "NCHW") == "NHWC"):
        options = f"; layers that do: {', '.join(stages)}" if stages else ""
        raise RecipeError(
            f"The output of {target} of {name} has shape {shape}, not that of a ConvNet's feature map (B, K, h, w)"
            f"{options}."
        )
    return outputs[target]


def _stages(model: nn.Module, maps: list[str]) -> list[str]:
    """Names of the stages that an integer `layer` selects: timm's `feature_info`, or the children that return feature
    maps."""
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
    """Name of the last top-level child that returns a feature map and is not a pooling layer."""
    pools = (nn.AdaptiveAvgPool2d, nn.AvgPool2d)
    children = [key for key, child in model.named_children() if key in maps and not isinstance(child, pools)]
    return children[-1] if children else FORWARD_FEATURES


def _subgraph(model: nn.Module, graph: fx.Graph, start: fx.Node, end: fx.Node) -> fx.GraphModule | None:
    """The graph that computes `end` from `start` alone; None if it also depends on the images in another way."""
    nodes, pending = {start}, [end]
    while pending:
        node = pending.pop()
        if node not in nodes:
            if node.op == "placeholder":
                return None
            nodes.add(node)
            pending.extend(node.all_input_nodes)
    part = fx.Graph()
    copies = {start: part.placeholder("features" if start.op != "placeholder" else "images")}
    for node in graph.nodes:
        if node in nodes and node is not start:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[end])
    return fx.GraphModule(model, part).eval()


def _without_inplace(head: fx.GraphModule) -> None:
    """Switch off in-place operations in the head, which would change the caller's features."""
    for node in head.graph.nodes:
        if node.kwargs.get("inplace"):
            node.update_kwarg("inplace", False)
        if node.op == "call_module" and getattr(head.get_submodule(node.target), "inplace", False):
            module: Any = copy.copy(head.get_submodule(node.target))
            module.inplace = False
            head.set_submodule(node.target, module)
    head.recompile()
