"""Which models can be hosts or proposals. A model is built and tried; its name is not used to decide."""

from __future__ import annotations

from collections import defaultdict
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from .. import zoo
from .._spec_models import load
from ..data.inputs import InputSpec
from ..errors import InputError, RecipeError, SieveError, UnsupportedHost, nearest
from ..hosts import Host, StagedHost, host_for, open_host
from ..measure import macs
from ..segmentation.plan import BUNDLED as SEGMENTERS
from ..significance.proposal import named_proposal, named_video_proposal
from ..stream import sieve
from ..zoo.models import TORCHVISION

HEAVY = 100_000_000
"""Number of parameters above which a model is not tried as a proposal: it would cost as much as its host."""


def bundled_names() -> list[str]:
    """Names of the models that come with the package, weights included."""
    return [*zoo.BUNDLED, *SEGMENTERS]


def families() -> list[dict[str, Any]]:
    """timm's families of models (its modules), those that may hold hosts first, as plain JSON.

    `hosts` is True if the module contains a class that can be a host; `model_facts` tests a single model.
    """
    facts = []
    tags = pretrained_tags()
    for module in timm.list_modules():
        names = timm.list_models(module=module)
        inside = timm.model_entrypoint(
            names[0]
        ).__globals__.values()  # a user may have registered a module outside of timm
        facts.append(
            {
                "module": module,
                "hosts": any(isinstance(member, type) and host_for(member) is not None for member in inside),
                "models": names,
                "pretrained": [name for name in names if name in tags],
            }
        )
    return sorted((family for family in facts if family["models"]), key=lambda family: not family["hosts"])


def matching(pattern: str) -> list[str]:
    """Names of models that match a pattern such as `deit*` or `*.mae`: bundled ones, transformers' video models, timm's
    and torchvision's.

    A name in both timm and torchvision means timm's model; "torchvision/conv*" means torchvision's.

    Raises:
        InputError: no name matches.
    """
    names = [name for name in (*bundled_names(), *zoo.VIDEO_MODELS) if fnmatchcase(name, pattern)]
    names += timm.list_models(pattern)
    if "." in pattern:  # names with a tag, as timm calls its weights
        names += timm.list_pretrained(pattern)
    names += [name for name in torchvision.models.list_models() if fnmatchcase(name, pattern)]
    if pattern.startswith(TORCHVISION):
        torchvision_names = [f"{TORCHVISION}{name}" for name in torchvision.models.list_models()]
        names = [name for name in torchvision_names if fnmatchcase(name, pattern)]
    if not names:
        known = [*bundled_names(), *zoo.VIDEO_MODELS, *timm.list_models(), *torchvision.models.list_models()]
        raise InputError(
            f"No model's name matches {pattern!r}{nearest(pattern.strip('*'), known)}. In a pattern * matches any "
            "text, for example 'vit_*'."
        )
    return list(dict.fromkeys(names))


@cache
def pretrained_tags() -> dict[str, list[str]]:
    """Name of a timm architecture -> the tags of its pretrained weights."""
    tags = defaultdict(list)
    for name in timm.list_pretrained():
        architecture, _, tag = name.partition(".")
        tags[architecture].append(tag)
    return dict(tags)


def weights_of(name: str) -> list[str]:
    """The pretrained weights that the model's library has for this name; empty if there are none."""
    if name in bundled_names():
        return ["bundled"]
    if name in zoo.VIDEO_MODELS:
        return [zoo.VIDEO_MODELS[name].checkpoint]
    if timm.is_model(name):
        architecture, _, tag = name.partition(".")
        return [tag] if tag else pretrained_tags().get(architecture, [])
    return [weights.name for weights in torchvision.models.get_model_weights(name.removeprefix(TORCHVISION))]


@torch.no_grad()
def model_facts(name: str, *, quick: bool = False) -> dict[str, Any]:
    """Build a model without weights, try to open it, and describe it as plain JSON.

    `opens_as` is "host", "proposal" or None; `reason` and `reason_proposal` explain None. `macs` are per image of
    `input_size` (C, H, W), or per clip of the given `layout`; those of a proposal are up to its feature map `features`
    (K, h, w), without classifier; None if they cannot be counted, explained by `macs_reason`. `quick` tries models only
    as hosts and counts no MACs.
    """
    model, spec = built(name)
    facts: dict[str, Any] = {
        "name": name,
        "library": _library(name),
        "module": type(model).__module__.rpartition(".")[2],
        "class": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "input_size": list(spec),
        "layout": spec.layout,
        "weights": weights_of(name),
    }
    try:
        host = open_host(model)
    except UnsupportedHost as refusal:
        refused = {"opens_as": None, "reason": str(refusal)}
        return {**facts, **refused, **({} if quick else _as_proposal(name, facts["parameters"], spec))}
    cost = {} if quick else _cost(model, spec)
    return {**facts, "opens_as": "host", **_as_host(model, host), **cost}


def _library(name: str) -> str:
    if name in zoo.VIDEO_MODELS:
        return "transformers"
    return "tokensieve" if name in bundled_names() else "timm" if timm.is_model(name) else "torchvision"


def built(name: str) -> tuple[nn.Module, InputSpec]:
    """The model without memory for its weights, and its input spec.

    It is on the meta device, where tensors have only shapes, so that large models need no memory.

    Raises:
        RecipeError: no library knows the name, or can build it.
    """
    try:
        with zoo.without_memory():
            model = load(name, {}, None, {}, pretrained=False).model
    except RecipeError:  # some constructors compute with values, which the meta device does not have
        model = load(name, {}, None, {}, pretrained=False).model
    return model.requires_grad_(False), InputSpec.of(model)


def _as_host(model: nn.Module, host: Host | StagedHost) -> dict[str, Any]:
    if isinstance(host, StagedHost):
        blocks = sum(len(stage.blocks) for stage in host.stages)
        reason = f"{type(model).__name__}'s maps keep their full size: papr selects the pixels of each stage."
        return {"blocks": blocks, "prefix": 0, "merges": False, "merges_reason": reason}
    merges, merges_reason = True, None
    try:
        sieve(model, "tome(r=1)")
    except UnsupportedHost as refusal:
        merges, merges_reason = False, str(refusal)
    return {
        "blocks": len(host.blocks),
        "prefix": host.prefix,
        "merges": merges,
        "merges_reason": merges_reason,
    }


def _as_proposal(name: str, parameters: int, spec: InputSpec) -> dict[str, Any]:
    """Try a model as a proposal: build it on a real device, up to a feature map, and run it."""
    if parameters > HEAVY:
        reason = f"{parameters / 1e6:.0f} M parameters are too many for a proposal, so {name} was not tried as one."
        return {"reason_proposal": reason}
    build = named_video_proposal if name in zoo.VIDEO_PROPOSALS else named_proposal
    try:
        proposal = build(name, pretrained=False)
        features = proposal(torch.zeros(1, *spec)).shape[1:]
    except (SieveError, RuntimeError) as refusal:  # torch raises its own errors for some networks
        return {"reason_proposal": str(refusal)}
    return {"opens_as": "proposal", "reason": None, "features": list(features), **_cost(proposal, spec)}


def _cost(module: nn.Module, spec: InputSpec) -> dict[str, Any]:
    try:
        return {"macs": macs(module, spec)}
    except InputError as refusal:  # operators without a formula
        return {"macs": None, "macs_reason": str(refusal)}
