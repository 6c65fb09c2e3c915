"""The base classes of hosts: adapters that give access to the parts of the user's model without copying it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..attention import BlockQKV
from ..data.inputs import InputSpec
from ..errors import InputError
from ..tokens import Tokens
from .checks import channels_first, covered


class Exit(NamedTuple):
    """The output of a classification head between two blocks; some of the tokens it read exit there."""

    block: int
    prediction: Any
    """The result of `Host.predict`."""
    source: Tensor
    """(B, P) int64: the index of each patch's token at this block, -1 for patches that exited earlier."""
    class_probability: str
    """Which head gives the class probability of the tokens that exit: the `last` one, or the one of this `stage`."""


class HostBlock(ABC):
    """One transformer block of the host.

    A block in which no method acts is called as a whole; otherwise its parts `qkv`, `attention_out` and `mlp` are
    called one after the other.
    """

    closed: str | None = None
    """Why no method can act inside this block, or None."""
    by_token = False
    """Whether `qkv` and `attention_out` compute each token independently of the others and of its position. Images with
    different numbers of tokens then pass through them concatenated, without padding, as through any `mlp`."""
    checkpoints = False
    """Whether gradient checkpointing is on: the stream saves the block's input and recomputes the rest in backward."""
    checkpoints_itself = False
    """Whether the block applies gradient checkpointing by itself when it is called as a whole."""
    bypassed: Sequence[nn.Module] = ()
    """Modules whose own forward is not called when a method acts in the block: the block, its attention."""

    def enter(self, tokens: Tokens) -> Tokens:
        """The tokens with everything the host adds before this block, such as positions; unchanged by default."""
        return tokens

    @abstractmethod
    def __call__(self, tokens: Tokens) -> Tensor:
        """The whole block, by its own forward: tokens.x -> (B, N, d)."""

    @abstractmethod
    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        """Queries, keys and values: norm, projections, key norm and positions.

        Args:
            tokens: the input of the block.
            query_rows: (B, M) int64, the tokens whose queries are needed, prefix first; None is all. Keys and values
                are computed for all tokens. A block may project only these queries, or compute all and select:
                `self.qkv(tokens).only_queries(query_rows)` gives the same result.
        """

    @abstractmethod
    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        """Projection, scale, drop path and residual: (B, H, M, d_h) and x (B, M, d) -> (B, M, d)."""

    @abstractmethod
    def mlp(self, x: Tensor) -> Tensor:
        """Norm, MLP, scale, drop path and residual: (B, N, d) -> (B, N, d)."""

    @property
    def trains(self) -> bool:
        """Whether the block is in training mode, in which dropout and drop path act (drop path on whole images)."""
        return any(part.training for part in self.bypassed)

    def rest(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        """The rest of the block after the attention itself: `attention_out`, then `mlp`."""
        return self.mlp(self.attention_out(attended, attention, x))


class BaseHost(ABC):
    """The interface that hosts with tokens (`Host`) and hierarchical hosts (`StagedHost`) share."""

    layout = "CHW"
    """The axes of the model's input, without the batch; "TCHW" or "CTHW" for models that read video."""
    model: Any
    """The user's model, an `nn.Module` whose submodules the host accesses by name."""

    @abstractmethod
    def __init__(self, model: nn.Module) -> None:
        """Open `model`; raises `UnsupportedHost` if the result would be silently wrong."""

    @classmethod
    def opened(cls, model: nn.Module) -> Any:
        """An instance for `model`: of this class, unless a part of the model (its backbone) calls for another one."""
        return cls(model)

    @property
    def input_spec(self) -> InputSpec:
        """Shape and layout of the model's input. A host that knows it better than the model's config overrides this."""
        return InputSpec.image(self.model)

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        """Modules around the blocks that are never called."""
        return (self.model,)

    @property
    def patch(self) -> Sequence[int] | None:
        """Patch size, (height, width) in pixels, for video (frames, height, width); with stages that of a pixel of
        stage 0's map. None if patches overlap or the size is unknown."""
        return None

    def covered(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        """The part of the images that the grid of patches covers, from which a significance map is computed:
        (B, C, H, W), for clips of any layout (B, C, T, H, W)."""
        return covered(channels_first(images, self.layout), grid, self.patch)


class Host(BaseHost):
    """A model with tokens, opened into the parts that the stream calls. It holds only references to submodules."""

    units = "tokens"
    """What a recipe reduces on this host."""
    blocks: Sequence[HostBlock]
    width: int
    """Channels of a token."""
    prefix: int
    """Class, distillation and register tokens in front of the patch tokens."""
    class_token: bool
    """Whether the first prefix token is a class token."""
    reads_prefix: bool
    """Whether the head reads only prefix tokens."""
    levels: Sequence[int] = ()
    """Indices of the blocks whose output the head reads, ascending; -1 is the input of block 0. If any are given the
    stream calls `read`; if empty it calls `head` on the output of the last block."""
    exits: Sequence[int] = ()
    """Indices of the blocks after which a head classifies each token, the last one included; `predict` runs it."""
    read_kwargs: Sequence[str] = ()
    """Names of the keyword arguments that `read` takes besides the images."""
    rebound: Sequence[str] = ()
    """Names of model methods that only call the model; on a sieved model they call the sieved forward."""
    dense_only: Sequence[str] = ()
    """Names of model methods that would run the dense model and ignore the recipe; a sieved model refuses them."""
    cannot_merge: str | None = None
    """Why this host's head cannot pool merged tokens, or None."""
    cannot_drop_prefix: str | None = None
    """Why its blocks need every prefix token, or None. Blocks with a positional table need them in any case."""

    @property
    def facts(self) -> tuple[Any, ...]:
        """Everything about the host that a plan depends on: a plan stays valid as long as this does not change."""
        closed = tuple(block.closed for block in self.blocks)
        return self.width, self.prefix, self.class_token, self.reads_prefix, self.cannot_merge, closed

    @abstractmethod
    def embed(self, images: Tensor) -> Tokens:
        """Everything before block 0: images (B, 3, H, W) -> the tokens of all patches, with positions, prefix tokens
        and pre-norm."""

    @abstractmethod
    def features(self, tokens: Tokens) -> Tokens:
        """The layers after the last block that still return tokens: the final norm."""

    @abstractmethod
    def head(self, tokens: Tokens) -> Any:
        """Pooling, weighted by token sizes, and classifier: the result of `features` -> the host's own output."""

    def predict(self, block: int, tokens: Tokens) -> Any:
        """Classify tokens by the head after a block of `exits`: an object with `probability`, (B, K, N) for K classes
        and the N tokens given, which may be a part of the block's tokens."""
        raise NotImplementedError

    def read(self, levels: Sequence[Tokens], exits: Sequence[Exit], size: Sequence[int], **kwargs: Any) -> Any:
        """The host's own output where its head reads several blocks. Dropped and merged patches must be put back.

        Args:
            levels: the tokens after each block of `self.levels`.
            exits: the predictions for tokens that exited between blocks.
            size: height and width of the images, in pixels.
            kwargs: those of `read_kwargs`.
        """
        raise NotImplementedError

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The arguments of a call of the sieved model -> the images, and the keyword arguments of `head` or `read`.

        Raises:
            InputError: no images, or keyword arguments that the host does not take; most hosts take none.
        """
        if images is None and "x" in kwargs:  # the name of timm's and open_clip's parameter
            images = kwargs.pop("x")
        read_arguments = {name: kwargs.pop(name) for name in self.read_kwargs if name in kwargs}
        if images is None or kwargs:
            raise InputError(
                f"{type(self.model).__name__} is called with images (B, 3, H, W) alone"
                + (f", not with {', '.join(kwargs)}=." if kwargs else ".")
            )
        return images, read_arguments
