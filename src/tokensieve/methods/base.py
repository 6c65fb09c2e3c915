"""The contract of a method: what happens to tokens, and where in the stream."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from torch import Tensor, nn

from ..attention import Attention
from ..errors import RecipeError, nearest
from ..pixels import Pixels
from ..tokens import Tokens

if TYPE_CHECKING:
    from ..recipe import Recipe


class Here(NamedTuple):
    """Where a method is asked how many tokens it leaves: integers alone, known before the first image."""

    block: int
    """Counted from 0."""
    depth: int
    """Blocks in all."""
    tokens: int
    """What has arrived here, prefix included."""
    prefix: int
    patches: int
    """Of the image, before anything acted."""


class There(NamedTuple):
    """Where a method is asked how many pixels it chooses, on a host with stages: integers alone."""

    stage: int
    """Counted from 0, of `stages`."""
    stages: int
    block: int
    """In its stage, of `depth`."""
    depth: int
    pixels: int
    """Of the stage's map."""


@dataclass(frozen=True)
class Evidence:
    """What a method may look at when it acts."""

    block: int = 0
    """Where it acts, counted from 0; `depth` blocks in all."""
    depth: int = 1
    significance: Tensor | None = None
    """(B, P) how much each patch matters, fp32; for methods with `needs_significance`."""
    attention: Attention | None = None
    """What this block's attention reads; for methods inside a block."""
    found: Tensor | None = None
    """What the method's own `attend` told beside its output."""
    memory: Tensor | None = None
    """What the method's own `prepare` gave before block 0."""
    part: nn.Module | None = None
    """The method's own learned layers, from `build`."""

    def keys(self, tokens: Tokens) -> Tensor:
        """(B, H, N, d_h) the tokens' keys, before rotary embedding; of a merged token its destination's."""
        assert self.attention is not None
        keys = self.attention.keys
        if tokens.row is None:
            return keys
        return keys.gather(2, tokens.row[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3]))

    def class_attention(self) -> Tensor:
        """(B, N) how much the class token attends to each of the block's tokens, mean over heads, fp32 or more."""
        assert self.attention is not None
        return self.attention.row().mean(1)

    @staticmethod
    def follow(values: Tensor, tokens: Tokens) -> Tensor:
        """(B, N) numbers of the block's tokens as it began -> of its tokens now."""
        return values if tokens.row is None else values.gather(1, tokens.row)


Place = Literal["start", "before", "queries", "rows", "inside", "after", "end"]
PLACES: dict[Place, str] = {
    "start": "once, before block 0",
    "before": "in front of blocks",
    "queries": "inside blocks, before the attention: what stays asks, and all is read",
    "rows": "inside blocks, at the attention, after a look at it: what stays asks, and all is read",
    "inside": "inside blocks, between attention and MLP",
    "after": "behind blocks",
    "end": "once, after the final norm",
}


@dataclass(frozen=True)
class Method(ABC):
    """Parent of all methods: a frozen dataclass whose fields are the settings in the paper's words.

    A method is plain tensor mathematics. It never sees a model, keeps nothing between calls, and decides how many
    tokens it leaves from Python integers alone, so that every shape is known before the first image.
    """

    name: ClassVar[str]
    """What the method is called in recipe text and JSON."""
    place: ClassVar[Place]
    """Where it acts, see `PLACES`."""
    needs_significance: ClassVar[bool] = False
    needs_class_token: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    """Changes sizes, so that pooling must know them, and attention's weights with them."""
    weighs: ClassVar[bool] = False
    """Changes how much attention counts a key, but no size."""
    attends: ClassVar[bool] = False
    """Computes the attention itself where it acts, by `attend`."""

    on_tokens: ClassVar[bool] = True
    """Acts on hosts whose tokens can be dropped or merged."""
    on_pixels: ClassVar[bool] = False
    """Acts on hosts with stages, where it chooses the pixels that point-wise operators run on."""

    family: ClassVar[str] = ""
    """The one family of hosts with stages that it is made for; empty is any."""

    files: ClassVar[Mapping[str, str]] = {}
    """Settings that name a file of weights -> the setting that keeps its SHA-256, a field with `compare=False`."""

    def __post_init__(self) -> None:
        """Check the settings that are files; a method that checks more of its settings calls this too."""
        for setting, digest in self.files.items():
            path, known = getattr(self, setting), getattr(self, digest)
            path = os.fspath(path) if isinstance(path, os.PathLike) else path
            if not isinstance(path, str | None):
                raise RecipeError(f"{self.name}: {setting} must be the name of a file, not {path!r}.")
            if not isinstance(known, str | None):
                raise RecipeError(f"{self.name}: {digest} must be a SHA-256 in hexadecimal digits, not {known!r}.")
            object.__setattr__(self, setting, path)

    @abstractmethod
    def left(self, here: Here) -> int:
        """How many of `here.tokens` remain after this method; the answer `here.tokens` means that it does not act."""

    def acts(self, here: Here) -> bool:
        """Whether it acts here at all."""
        return self.left(here) < here.tokens

    @property
    def varies(self) -> bool:
        """Leaves another number of tokens in each image, `left` at most; a batch is padded."""
        return False

    @abstractmethod
    def reduce(self, tokens: Tokens, left: int, evidence: Evidence) -> Tokens:
        """Reduce to `left` tokens, prefix included. Called only where the method acts."""

    def chooses(self, there: There) -> int | None:
        """For methods `on_pixels`: how many pixels it chooses in front of this block, until it chooses again or the
        stage ends; None where it does not."""
        return None

    def build_for_stages(self, widths: Sequence[int], depths: Sequence[int], pretrained: bool) -> nn.Module | None:
        """`build` for methods `on_pixels`: channels and blocks of each stage."""
        return None

    def choose(self, x: Tensor, count: int, there: There, evidence: Evidence) -> Pixels:
        """For methods `on_pixels`: choose `count` pixels of the map x (B, H, W, C) that goes into this block."""
        raise NotImplementedError

    def attend(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """For methods that `attend`: the attention's output (B, H, M, d_h), and what `reduce` gets as `found`."""
        raise NotImplementedError

    def prepare(self, tokens: Tokens) -> Tensor | None:
        """What to remember of the embedded patches, all of them, before anything acts; `reduce` gets it as `memory`."""
        return None

    def build(self, width: int, depth: int, pretrained: bool) -> nn.Module | None:
        """Learned layers of the method's own, for `depth` blocks of `width` channels; `reduce` gets them as `part`.

        With `pretrained` False they may be random, for measuring cost alone.
        """
        return None

    def refuses(self, reads_prefix: bool, others: Sequence[Method]) -> str | None:
        """Why this method makes no sense here, or None.

        Args:
            reads_prefix: the host's head reads nothing but prefix tokens.
            others: the recipe's other methods that act somewhere.

        Returns:
            The end of a sentence "... cannot take this: ". One that begins with "its " is about the host.
        """
        return None

    def settings(self) -> dict[str, Any]:
        """Field name -> value, all of them, as a recipe file records them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def paths(self) -> dict[str, str]:
        """The settings that name a file, and which."""
        return {setting: path for setting in self.files if (path := getattr(self, setting)) is not None}

    def read(self, setting: str) -> dict[str, Tensor]:
        """The tensors in the file that `setting` names, in float32.

        Raises:
            InputError: there is no such file, it cannot be read, or its SHA-256 is not the one that is recorded.
        """
        from ..zoo.models import read_weights

        return read_weights(self.paths()[setting], getattr(self, self.files[setting]))

    def with_hashes(self) -> Self:
        """The same method, with the SHA-256 of its files where none is recorded yet. Raises `InputError`."""
        unknown = {self.files[setting]: path for setting, path in self.paths().items()}
        unknown = {digest: path for digest, path in unknown.items() if getattr(self, digest) is None}
        if not unknown:
            return self
        from ..zoo import file_sha256

        return replace(self, **{digest: file_sha256(path) for digest, path in unknown.items()})

    def __add__(self, other: Method | Recipe | str) -> Recipe:
        from ..recipe import Recipe  # a recipe is made of methods; the sum alone looks the other way

        return Recipe.of(self) + other

    def __str__(self) -> str:
        from ..recipe import Recipe

        return str(Recipe.of(self))


METHODS: dict[str, type[Method]] = {}
"""Recipe name -> class. Filled by `register`."""

SHORTHANDS: dict[str, Callable[..., Method]] = {}
"""Further names that recipe text may use for a method with certain settings."""


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known to recipes under its `name`."""
    METHODS[cls.name] = cls
    return cls


def make(name: str, settings: dict[str, Any]) -> Method:
    """The method called `name` with these settings; what is unknown is refused, naming the nearest valid word."""
    known: dict[str, Callable[..., Method]] = {**METHODS, **SHORTHANDS}
    if name not in known:
        raise RecipeError(f"There is no method {name!r}{nearest(name, known)}. Known: {', '.join(sorted(known))}.")
    parameters = inspect.signature(known[name]).parameters
    valid = list(parameters)
    for word in settings:
        if word not in valid:
            raise RecipeError(
                f"{name} has no setting {word!r}{nearest(word, valid)}. Its settings: {', '.join(valid)}."
            )
    for word, parameter in parameters.items():
        if parameter.default is parameter.empty and word not in settings:
            raise RecipeError(f"{name} needs {word}=; its settings: {', '.join(valid)}.")
    return known[name](**settings)
