"""transformers' vision layers under ToMe or with patches dropped before them, the slow way in float64, one image each.

Only the smallest modules are called: embeddings, norms, linear layers, MLPs. What the layers give is put back on the
grid patch by patch, and a hook puts it in the place of what the dense model's own layers give, so that everything
around the layers is the dense model's own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.reference.merging import Tome
from tests.reference.stream import Look, Stream


def dense_output(
    model: nn.Module, images: Tensor, r: int = 0, kept: Sequence[Sequence[int]] | None = None, zero: bool = False
) -> tuple[Any, float]:
    """The model's own output in float64 where each layer's states are those under ToMe with `r`, or of the patches
    `kept` of each image alone, on the whole grid; and the smallest lead of a decision.

    A dropped patch shows the kept one that is nearest, the first of several; or `zero`.
    """
    model = copy.deepcopy(model).double().eval()
    holder, layers = _parts(model)
    walked = len(layers) - getattr(model.config, "num_blocks", 0)
    with torch.no_grad():
        each = [
            _walk(model, holder, layers[:walked], image[None].double(), r, kept and kept[n], zero)
            for n, image in enumerate(images)
        ]
        for index, layer in enumerate(layers[:walked]):
            states = torch.stack([states[index + 1] for states, _ in each])
            layer.register_forward_hook(lambda *_, states=states: states, prepend=True)
        first = torch.stack([states[0] for states, _ in each])
        layers[0].register_forward_pre_hook(lambda _, inputs, first=first: (first, *inputs[1:]), prepend=True)
        output = model(images.double())
    return output, min(margin for _, margin in each)


def _parts(model: nn.Module) -> tuple[Any, Any]:
    """What holds the embeddings, and the layers."""
    for name in ("backbone", "dpt", "beit", "vit"):
        model = getattr(model, name, None) or model
    for name in ("beit",):
        model = getattr(model, name, None) or model
    for path in ("encoder.layer", "model.layer", "layers"):
        with_path = dict(model.named_modules()).get(path)
        if with_path is not None:
            return model, with_path
    raise NotImplementedError(type(model).__name__)


def _walk(
    model: Any, holder: Any, layers: Any, image: Tensor, r: int, kept: Sequence[int] | None, zero: bool
) -> tuple[list[Tensor], float]:
    """What the first layer reads and what each gives, (prefix + P, d), in the model's own order; the smallest lead."""
    config = holder.config
    x = holder.embeddings(image)
    x = getattr(x, "last_hidden_states", x)[0]
    last = getattr(config, "num_detection_tokens", 0)
    prefix = 1 + getattr(config, "num_register_tokens", 0) + last
    x = torch.cat([x[:1], x[len(x) - last :], x[1 : len(x) - last]])
    patches = len(x) - prefix
    grid = tuple(side // config.patch_size for side in image.shape[2:])
    assert math.prod(grid) == patches
    stream = Stream.start(x, prefix, grid)
    if kept is not None:
        stream.keep([*range(prefix), *(prefix + j for j in kept)])
    rope = [part.double() for part in holder.rope_embeddings(image)] if hasattr(holder, "rope_embeddings") else None
    middle = _middle(holder)
    states = [_restored(stream, last, zero)]
    for index, layer in enumerate(layers):
        if index and middle is not None:
            table = middle[index - 1, 0]
            table = torch.cat([table[:1], table[len(table) - last :], table[1 : len(table) - last]])
            own = [n if row < 0 else prefix + row for n, row in enumerate(stream.rows)]
            stream.x = stream.x + table[own]
        _layer(model, holder, layer, stream, rope, Look(index, len(layers)), r)
        states.append(_restored(stream, last, zero))
    return states, stream.margin


def _layer(model: Any, holder: Any, layer: Any, stream: Stream, rope: list[Tensor] | None, look: Look, r: int) -> None:
    config = holder.config
    heads = config.num_attention_heads
    find = _Finder(layer)
    y = find("norm1", "layernorm_before")(stream.x)
    width = config.hidden_size // heads
    q, k, v = (
        [find(*names)(y)[:, h * width : (h + 1) * width] for h in range(heads)]
        for names in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
    )
    look.keys = list(k)
    if rope is not None:
        q, k = ([_rotate(head, stream, *rope) for head in part] for part in (q, k))
    bias = _bias(holder, layer, stream)
    look.probs = []
    for h in range(heads):
        logits = q[h] @ k[h].T / math.sqrt(width)
        if bias is not None:
            logits = logits + bias[h]
        if stream.weights is not None:
            logits = logits + torch.tensor([math.log(w) for w in stream.weights], dtype=torch.float64)
        look.probs.append(logits.softmax(-1))
    mixed = torch.cat([probs @ head for probs, head in zip(look.probs, v, strict=True)], dim=-1)
    branch = find("o_proj", "out_proj", "attention.output.dense")(mixed)
    stream.x = stream.x + _scale(layer, 1) * branch
    stream.own = list(range(len(stream.members)))
    Tome(r).act(stream, look)
    y = find("norm2", "layernorm_after")(stream.x)
    if hasattr(layer, "mlp"):
        y = _scale(layer, 2) * layer.mlp(y)
    else:
        y = layer.output.dense(layer.intermediate(y))
    stream.x = stream.x + y


class _Finder:
    """A part of a layer by the end of its name."""

    def __init__(self, layer: nn.Module) -> None:
        self.parts = dict(layer.named_modules())

    def __call__(self, *endings: str) -> nn.Module:
        found = [part for name, part in self.parts.items() for end in endings if f".{name}".endswith(f".{end}")]
        assert len(found) == 1, endings
        return found[0]


def _scale(layer: Any, number: int) -> Any:
    if hasattr(layer, f"layer_scale{number}"):
        return getattr(layer, f"layer_scale{number}").lambda1
    return getattr(layer, f"lambda_{number}", 1.0)


def _rotate(head: Tensor, stream: Stream, cos: Tensor, sin: Tensor) -> Tensor:
    """A patch's first and second half turn by the angles of its place."""
    out, half = head.clone(), head.shape[1] // 2
    for n, row in enumerate(stream.rows):
        if row >= 0:
            first, second = head[n, :half], head[n, half:]
            out[n, :half] = first * cos[row, :half] - second * sin[row, :half]
            out[n, half:] = second * cos[row, half:] + first * sin[row, half:]
    return out


def _bias(holder: Any, layer: Any, stream: Stream) -> Tensor | None:
    """BEiT's relative position bias of each head between the places of the tokens: (H, N, N)."""
    tables = [
        part.relative_position_bias_table
        for part in (getattr(layer, "relative_position_bias", None), getattr(holder, "shared_position_bias", None))
        if part is not None
    ]
    if not tables:
        return None
    height, width = stream.grid
    n = len(stream.rows)
    bias = torch.zeros(tables[0].shape[1], n, n, dtype=torch.float64)
    for table in tables:
        to_class, of_class, itself = len(table) - 2, len(table) - 3, len(table) - 1
        for a, one in enumerate(stream.rows):
            for b, other in enumerate(stream.rows):
                if one < 0 or other < 0:
                    row = itself if one == other else of_class if one < 0 else to_class
                else:
                    down = one // width - other // width + height - 1
                    right = one % width - other % width + width - 1
                    row = down * (2 * width - 1) + right
                bias[:, a, b] += table[row]
    return bias


def _middle(holder: Any) -> Tensor | None:
    """YOLOS' positions between layers, (L - 1, 1, 1 + P + D, d), for images of the size it was built for."""
    tables = [table for name, table in holder.named_parameters() if name.endswith("mid_position_embeddings")]
    return tables[0] if tables else None


def _restored(stream: Stream, last: int, zero: bool) -> Tensor:
    """Every patch with its token's row; in the model's own order, with the detection tokens behind."""
    there = {j: n for n, group in enumerate(stream.members) for j in group}
    rows = []
    for j in range(math.prod(stream.grid)):
        if j in there:
            rows.append(stream.x[there[j]])
        elif zero:
            rows.append(torch.zeros_like(stream.x[0]))
        else:
            y, x = divmod(j, stream.grid[1])
            apart = {i: (i // stream.grid[1] - y) ** 2 + (i % stream.grid[1] - x) ** 2 for i in sorted(there)}
            rows.append(stream.x[there[min(apart, key=lambda i: (apart[i], i))]])
    first = stream.prefix - last
    return torch.stack([*stream.x[:first], *rows, *stream.x[first : stream.prefix]])
