"""The contract of a host: the user's model, opened and not copied."""

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
    """The output of a head between blocks on the tokens there, some of which then left."""

    block: int
    prediction: Any
    """The result of `Host.predict`."""
    source: Tensor
    """(B, P) int64: the token that stands for each patch there, -1 where it had left before."""
    class_probability: str
    """Which head's class probability counts for the tokens that left: the `last` one's, or that of the `stage`."""


class HostBlock(ABC):
    """One block of the host. Called whole where nothing acts in it; else through its three verbs."""

    closed: str | None = None
    """Why no method can act inside this block, or None."""
    by_token = False
    """Whether `qkv` and `attention_out` compute each token from itself alone, wherever it stands: then images of unlike
    lengths go through them as one sequence without padding, as they do through any `mlp`."""
    checkpoints = False
    """Whether gradient checkpointing is switched on: the stream keeps what goes in, and computes the rest again."""
    checkpoints_itself = False
    """Whether the block does so by itself where it is called whole."""
    bypassed: Sequence[nn.Module] = ()
    """Modules that are not called once the block is opened: itself, its attention."""

    def enter(self, tokens: Tokens) -> Tokens:
        """What the host adds to the tokens in front of the block, such as positions; nothing by default."""
        return tokens

    @abstractmethod
    def __call__(self, tokens: Tokens) -> Tensor:
        """The block as it is: tokens.x -> (B, N, d)."""

    @abstractmethod
    def qkv(self, tokens: Tokens, query_rows: Tensor | None = None) -> BlockQKV:
        """Norm, projections, key norm, positions.

        `query_rows` (B, M) int64: the tokens whose queries are needed, prefix first; keys and values are of all. A
        block may project those alone, or leave it to the caller: `self.qkv(tokens).only_queries(query_rows)` is the
        same.
        """

    @abstractmethod
    def attention_out(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        """Projection, scale, drop path and residual: (B, H, M, d_h) and x (B, M, d) -> (B, M, d)."""

    @abstractmethod
    def mlp(self, x: Tensor) -> Tensor:
        """Norm, MLP, scale, drop path and residual: (B, N, d) -> (B, N, d)."""

    @property
    def trains(self) -> bool:
        """Whether anything is dropped at random, which may be whole images."""
        return any(part.training for part in self.bypassed)

    def rest(self, attended: Tensor, attention: BlockQKV, x: Tensor) -> Tensor:
        """Everything behind the attention itself."""
        return self.mlp(self.attention_out(attended, attention, x))


class BaseHost(ABC):
    """The contract that hosts with tokens and hosts with stages share."""

    layout = "CHW"
    """Which side of what it reads is which, without the batch; "TCHW" or "CTHW" where it reads video."""
    model: Any
    """The host itself, an `nn.Module` whose parts the opener knows by name."""

    @abstractmethod
    def __init__(self, model: nn.Module) -> None:
        """Open `model`; raises `UnsupportedHost` for what would go wrong silently."""

    @classmethod
    def opened(cls, model: nn.Module) -> Any:
        """The host that opens `model`: this one, unless it depends on a part of the model which one it is."""
        return cls(model)

    @property
    def input_spec(self) -> InputSpec:
        """What the model reads; a host that knows better than the model says it here, as a property or an attribute."""
        return InputSpec.image(self.model)

    @property
    def bypassed(self) -> Sequence[nn.Module]:
        """Modules around the blocks that are never called."""
        return (self.model,)

    @property
    def patch(self) -> Sequence[int] | None:
        """Height and width in pixels of what a token, or a pixel of stage 0, stands for, of video its frames before
        them; None where patches overlap, or are not known."""
        return None

    def covered(self, images: Tensor, grid: Sequence[int]) -> Tensor:
        """What of the images the grid of patches covers: what a significance map is made of. Of clips in any layout
        (B, C, T, H, W)."""
        return covered(channels_first(images, self.layout), grid, self.patch)


class Host(BaseHost):
    """A model opened into the parts of the stream. Holds references to its sub-modules and nothing else."""

    units = "tokens"
    """What recipes reduce."""
    blocks: Sequence[HostBlock]
    width: int
    """Channels of a token."""
    prefix: int
    """Class, distillation and register tokens in front of the patch tokens."""
    class_token: bool
    """Whether the first of these is a class token."""
    reads_prefix: bool
    """Whether the head reads nothing but prefix tokens."""
    levels: Sequence[int] = ()
    """Blocks behind which the head reads tokens, in rising order: `read` is called. Empty: `head` reads the last. -1 is
    what block 0 reads."""
    exits: Sequence[int] = ()
    """Blocks behind which a head classifies each token, the last one included; `predict` runs it."""
    read_kwargs: Sequence[str] = ()
    """Arguments that `read` takes beside the images, by name."""
    rebound: Sequence[str] = ()
    """Methods of the model that do nothing but call the model, and so are called on what `sieve` returns."""
    dense_only: Sequence[str] = ()
    """Methods of the model that would run the dense model past the recipe: a sieved model refuses them."""
    cannot_merge: str | None = None
    """Why this host's head cannot pool merged tokens, or None."""
    cannot_drop_prefix: str | None = None
    """Why its blocks cannot do without a token in front, or None; nor can those that get a positional table."""

    @property
    def facts(self) -> tuple[Any, ...]:
        """All of the host that a plan depends on: while it stays the same, so does the plan."""
        closed = tuple(block.closed for block in self.blocks)
        return self.width, self.prefix, self.class_token, self.reads_prefix, self.cannot_merge, closed

    @abstractmethod
    def embed(self, images: Tensor) -> Tokens:
        """Everything before block 0: (B, 3, H, W) -> tokens of all patches, with position, prefix and pre-norm."""

    @abstractmethod
    def features(self, tokens: Tokens) -> Tokens:
        """Everything after the last block that is still a token: the final norm."""

    @abstractmethod
    def head(self, tokens: Tokens) -> Any:
        """Pooling, which minds sizes, and classifier: what `features` gave -> the host's own output."""

    def predict(self, block: int, tokens: Tokens) -> Any:
        """The output of the head behind one of the `exits` on any of that block's tokens: an object with `probability`,
        (B, K, N) of each class."""
        raise NotImplementedError

    def read(self, levels: Sequence[Tokens], exits: Sequence[Exit], size: Sequence[int], **kwargs: Any) -> Any:
        """The tokens behind each of `levels`, and the outputs on those that left before -> the host's own output for
        images of this height and width. Dropped and merged patches have to be put back."""
        raise NotImplementedError

    def arguments(self, images: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """What a sieved model was called with -> the images, and the arguments that go to `head` or `read`.

        Raises:
            InputError: no images, or words that the host does not know; most know none.
        """
        if images is None and "x" in kwargs:  # what timm and open_clip call it
            images = kwargs.pop("x")
        read_arguments = {name: kwargs.pop(name) for name in self.read_kwargs if name in kwargs}
        if images is None or kwargs:
            raise InputError(
                f"{type(self.model).__name__} is called with images (B, 3, H, W) alone"
                + (f", not with {', '.join(kwargs)}=." if kwargs else ".")
            )
        return images, read_arguments
