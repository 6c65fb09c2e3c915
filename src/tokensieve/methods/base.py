"""The contract of a method: what happens to tokens, and where in the stream."""

from __future__ import annotations

import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

from torch import Tensor, nn

from ..attention import BlockQKV
from ..errors import RecipeError, UnsupportedHost, nearest
from ..pixels import Pixels
from ..tokens import Tokens
from .evidence import AttentionEvidence, Evidence, ExitEvidence, MapEvidence

if TYPE_CHECKING:
    from ..recipe import Recipe

__all__ = [
    "METHODS",
    "SHORTHANDS",
    "AttentionEvidence",
    "BaseMethod",
    "E",
    "Evidence",
    "ExitEvidence",
    "MapEvidence",
    "Method",
    "PixelMethod",
    "PixelSite",
    "Place",
    "TokenSite",
    "make",
    "register",
]

E = TypeVar("E", bound=Evidence)
"""The evidence that a method gets: `Evidence`, `MapEvidence`, `AttentionEvidence` or `ExitEvidence`, by its place."""


class TokenSite(NamedTuple):
    """A point in the model at which `Method.left` gives a token count: integers, known before any image."""

    block: int
    """Counted from 0."""
    depth: int
    """Blocks in all."""
    tokens: int
    """Number of tokens that arrive here, prefix included."""
    prefix: int
    patches: int
    """Number of patches of the image, before any method acted."""


class PixelSite(NamedTuple):
    """A point in a host with stages at which a method gives a pixel count: integers, known before any image."""

    stage: int
    """Index of the stage, from 0."""
    stages: int
    block: int
    """Index of the block in its stage, from 0."""
    depth: int
    pixels: int
    """Number of pixels of the stage's feature map."""


Place = Literal["start", "before", "queries", "rows", "inside", "after", "end"]
PLACES: dict[Place, str] = {
    "start": "once, before block 0",
    "before": "before blocks",
    "queries": "inside blocks, before the attention: kept tokens are the queries, all tokens the keys and values",
    "rows": "inside blocks, after the attention scores: kept tokens are the queries, all tokens the keys and values",
    "inside": "inside blocks, between attention and MLP",
    "after": "after blocks",
    "end": "once, after the final norm",
}


class HostFacts(Protocol):
    """What a method may know, before it runs, of the host (with tokens) that it is applied to."""

    model: Any
    layout: str
    """"CHW" of images, "TCHW" or "CTHW" where it reads video."""
    prefix: int
    class_token: bool
    reads_prefix: bool
    """Whether the head reads nothing but prefix tokens."""
    cannot_merge: str | None
    blocks: Sequence[Any]
    exits: Sequence[int]
    """Blocks followed by a head that classifies each token."""


@dataclass(frozen=True)
class BaseMethod(ABC):
    """What every method is: a frozen dataclass whose fields are the settings in the paper's words.

    A method is plain tensor mathematics. It never sees a model, keeps nothing between calls, and decides how many
    tokens it leaves from Python integers alone, so that every shape is known before the first image. `Method` is the
    parent of those that act on tokens, `PixelMethod` of those that choose pixels; one may be both.
    """

    name: ClassVar[str]
    """The method's name in recipe text and JSON."""
    needs_significance: ClassVar[bool] = False
    on_tokens: ClassVar[bool] = False
    on_pixels: ClassVar[bool] = False
    family: ClassVar[str] = ""
    """The one family of hosts that it is made for; empty is any."""
    files: ClassVar[Mapping[str, str]] = {}
    """Settings that name a file of weights -> the setting that keeps its SHA-256, a field with `compare=False`."""
    published: ClassVar[Mapping[str, str]] = {}
    """How files of `weights` name a tensor -> how the learned layers do, both as templates such as `fast.{}.scale`.

    What fits none of them belongs to the host. Empty where files hold the layers' own names and nothing else.
    """
    not_of_the_map: ClassVar[tuple[str, ...]] = ("keep", "order")
    """Settings of a method with `needs_significance` that do not change how the map is made."""

    def __post_init__(self) -> None:
        """Convert and check the settings; a method that checks more of its own calls this first.

        A field's metadata may have a `check`, which gets the method's name, the setting's and the value, and returns
        what is stored.
        """
        for setting_field in fields(self):
            if "check" in setting_field.metadata:
                value = setting_field.metadata["check"](
                    self.name, setting_field.name, getattr(self, setting_field.name)
                )
                object.__setattr__(self, setting_field.name, value)
        for setting, digest in self.files.items():
            path, sha256 = getattr(self, setting), getattr(self, digest)
            path = os.fspath(path) if isinstance(path, os.PathLike) else path
            if not isinstance(path, str | None):
                raise RecipeError(f"{self.name}: {setting} must be the name of a file, not {path!r}.")
            if not isinstance(sha256, str | None):
                raise RecipeError(f"{self.name}: {digest} must be a SHA-256 in hexadecimal digits, not {sha256!r}.")
            object.__setattr__(self, setting, path)

    def settings(self) -> dict[str, Any]:
        """Field name -> value, all of them, as a recipe file records them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map_settings(self) -> dict[str, Any]:
        """The settings that say how its significance map is made: arguments of `significance.build`."""
        return {name: value for name, value in self.settings().items() if name not in self.not_of_the_map}

    def paths(self) -> dict[str, str]:
        """The settings that name a file, and which."""
        return {setting: path for setting in self.files if (path := getattr(self, setting)) is not None}

    def read(self, setting: str) -> dict[str, Tensor]:
        """The tensors in the file that `setting` names, in float32, or float64 where they are stored so.

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

    def __add__(self, other: BaseMethod | Recipe | str) -> Recipe:
        from ..recipe import Recipe  # imported here because recipe.py imports this module

        return Recipe.of(self) + other

    def __str__(self) -> str:
        from ..recipe import Recipe

        return str(Recipe.of(self))


@dataclass(frozen=True)
class Method(BaseMethod, Generic[E]):
    """Parent of methods that drop, merge or correct tokens; E is the evidence of its place.

    A subclass says where it acts (`place`), how many tokens it leaves (`left`) and which (`reduce`).
    """

    place: ClassVar[Place]
    """Where it acts, see `PLACES`."""
    needs_class_token: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    """Merges tokens: attention and pooling must weight each one by its size (ToMe's proportional attention)."""
    weighs: ClassVar[bool] = False
    """Changes how strongly attention weights a key, but not the token's size."""
    pads: ClassVar[bool] = False
    """May leave a different number of tokens in each image, see `Tokens.lengths`; attention and pooling must mask."""
    knows_padding: ClassVar[bool] = False
    """`reduce` handles `Tokens.lengths` itself. Others are called per group of images of one length, unpadded."""
    reads_exits: ClassVar[bool] = False
    """Reads the predictions of the heads between the host's blocks, as `ExitEvidence`."""
    attends: ClassVar[bool] = False
    """Computes the attention itself where it acts, by `attend`."""
    on_tokens: ClassVar[bool] = True
    needs_prefix_head: ClassVar[str] = ""
    """Why the head must read nothing but prefix tokens, as the end of a sentence; empty where it need not."""

    @abstractmethod
    def left(self, site: TokenSite) -> int:
        """How many of `site.tokens` remain after this method; `site.tokens` itself means that it does not act here."""

    def acts(self, site: TokenSite) -> bool:
        """Whether it acts here at all."""
        return self.left(site) < site.tokens

    @property
    def exit_classes(self) -> str:
        """With `reads_exits`: whether the `last` head or that of the `stage` says which classes are in the image."""
        return "last"

    @property
    def varies(self) -> bool:
        """Whether the number of tokens left differs between images, with `left` as its maximum; batches are padded."""
        return False

    @abstractmethod
    def reduce(self, tokens: Tokens, left: int, evidence: E) -> Tokens:
        """Reduce to `left` tokens, prefix included. Called only where the method acts."""

    def attend(self, attention: BlockQKV) -> tuple[Tensor, Tensor]:
        """For methods that `attend`: the attention's output (B, H, M, d_h), and the evidence's `attention_scores`."""
        raise NotImplementedError

    def prepare(self, tokens: Tokens) -> Tensor | None:
        """Called with all embedded patches before any method acts; the result becomes the evidence's `prepared`."""
        return None

    def build(self, width: int, depth: int, pretrained: bool) -> nn.Module | None:
        """Learned layers of the method's own, for `depth` blocks of `width` channels; `reduce` gets them as `module`.

        With `pretrained` False they may be random, for measuring cost alone. Weights come from the file that a setting
        called `weights` names, by `methods.weights.load_part`: recipes are then saved with what was trained.
        """
        return None

    def on(self, host: HostFacts) -> Self:
        """A copy with the settings that depend on the host filled in. Raises `UnsupportedHost` where it has none."""
        if self.reads_exits and len(host.exits) < 2:
            raise UnsupportedHost(
                f"{type(host.model).__name__} cannot take {self.name}: it has no heads between its blocks that say of "
                "which class each token is. tokensieve.segmentation.segvit() and .setr() build models that have."
            )
        return self

    def check(self, host: HostFacts, others: Sequence[BaseMethod]) -> None:
        """Refuse a host that this method cannot run on, or acting methods of the recipe that it does not combine with.

        Raises:
            UnsupportedHost: the host lacks what the method needs.
            RecipeError: it does not go with one of the others.
        """
        name = type(host.model).__name__
        if (self.merges or self.pads) and host.cannot_merge:
            raise UnsupportedHost(f"{name} cannot take {self.name}: {host.cannot_merge}. PaPr works on it.")
        if self.needs_class_token and not host.class_token:
            raise UnsupportedHost(
                f"{name} cannot take {self.name}: it reads a class token, or the attention of one, and this host has "
                "none. Methods that need none, such as PaPr and ToMe, work on it."
            )
        if self.needs_prefix_head and not host.reads_prefix:
            raise UnsupportedHost(
                f"{name} cannot take {self.name}: its head reads patch tokens too, {self.needs_prefix_head}."
            )


@dataclass(frozen=True)
class PixelMethod(BaseMethod):
    """Parent of methods that choose, on hosts with stages, the pixels that point-wise operators run on."""

    on_pixels: ClassVar[bool] = True

    @abstractmethod
    def chooses(self, site: PixelSite) -> int | None:
        """How many pixels it chooses in front of this block, until it chooses again or the stage ends; None where it
        does not."""

    @abstractmethod
    def choose(self, x: Tensor, count: int, site: PixelSite, evidence: Any) -> Pixels:
        """Choose `count` pixels of the map x (B, H, W, C) that goes into this block.

        `evidence` is a `MapEvidence` for methods with `needs_significance`, an `Evidence` for others.
        """

    def build_for_stages(self, widths: Sequence[int], depths: Sequence[int], pretrained: bool) -> nn.Module | None:
        """Learned layers of the method's own, for the channels and blocks of each stage; see `Method.build`."""
        return None


METHODS: dict[str, type[BaseMethod]] = {}
"""Recipe name -> class. Filled by `register`."""

SHORTHANDS: dict[str, Callable[..., BaseMethod]] = {}
"""Recipe name -> function that returns a method with preset settings."""


def register(cls: type[BaseMethod]) -> type[BaseMethod]:
    """Class decorator: make a method known to recipes under its `name`."""
    METHODS[cls.name] = cls
    return cls


def make(name: str, settings: dict[str, Any]) -> BaseMethod:
    """The method called `name` with these settings; what is unknown is refused, naming the nearest valid word."""
    methods: dict[str, Callable[..., BaseMethod]] = {**METHODS, **SHORTHANDS}
    if name not in methods:
        raise RecipeError(f"There is no method {name!r}{nearest(name, methods)}. Known: {', '.join(sorted(methods))}.")
    parameters = inspect.signature(methods[name]).parameters
    valid = list(parameters)
    for word in settings:
        if word not in valid:
            raise RecipeError(
                f"{name} has no setting {word!r}{nearest(word, valid)}. Its settings: {', '.join(valid)}."
            )
    for word, parameter in parameters.items():
        if parameter.default is parameter.empty and word not in settings:
            raise RecipeError(f"{name} needs {word}=; its settings: {', '.join(valid)}.")
    return methods[name](**settings)
