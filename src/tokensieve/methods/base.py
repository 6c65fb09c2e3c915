"""The base classes of methods, which define what happens to tokens or pixels and where in the model."""

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
    """A point in the model for which `Method.left` computes a token count: integers, known before any image."""

    block: int
    """Index of the block, from 0."""
    depth: int
    """Number of blocks of the model."""
    tokens: int
    """Number of tokens at this point, prefix included."""
    prefix: int
    """Number of prefix tokens."""
    patches: int
    """Number of patches of the image, before any method acts."""


class PixelSite(NamedTuple):
    """A point in a hierarchical host for which a method computes a pixel count: integers, known before any image."""

    stage: int
    """Index of the stage, from 0."""
    stages: int
    """Number of stages of the model."""
    block: int
    """Index of the block in its stage, from 0."""
    depth: int
    """Number of blocks of the stage."""
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
    """The properties of a host with tokens that a method can check before it runs; see `Host`."""

    model: Any
    layout: str
    """"CHW" for images, "TCHW" or "CTHW" for video."""
    prefix: int
    class_token: bool
    reads_prefix: bool
    """Whether the head reads only prefix tokens."""
    cannot_merge: str | None
    blocks: Sequence[Any]
    exits: Sequence[int]
    """Blocks followed by a head that classifies each token."""


@dataclass(frozen=True)
class BaseMethod(ABC):
    """Base class of all methods: a frozen dataclass whose fields are the settings, named as in the paper.

    A method only computes on tensors. It never accesses a model and keeps nothing between calls. The number of tokens
    that it keeps is computed from Python integers, so that all shapes are known before the first image. Methods on
    tokens derive from `Method`, methods that select pixels from `PixelMethod`; a class can derive from both.
    """

    name: ClassVar[str]
    """The method's name in recipe text and JSON."""
    needs_significance: ClassVar[bool] = False
    on_tokens: ClassVar[bool] = False
    on_pixels: ClassVar[bool] = False
    family: ClassVar[str] = ""
    """The family of hosts for which it is made, such as "ConvNeXt"; empty is any."""
    files: ClassVar[Mapping[str, str]] = {}
    """Setting with the path of a weights file -> the setting with its SHA-256, a field with `compare=False`."""
    published: ClassVar[Mapping[str, str]] = {}
    """Name of a tensor in weights files -> its name in the learned layers, both as templates such as `fast.{}.scale`.

    Tensors that match no template belong to the host, and are ignored. Empty if files have only the layers' own names.
    """
    not_of_the_map: ClassVar[tuple[str, ...]] = ("keep", "order")
    """For a method with `needs_significance`: settings that do not affect how the map is computed."""

    def __post_init__(self) -> None:
        """Convert and check the settings. Subclasses with further checks call this first.

        The metadata of a field may have a function `check`, which gets the method's name, the setting's name and its
        value, and returns the value to store.
        """
        for setting_field in fields(self):
            if "check" in setting_field.metadata:
                value = setting_field.metadata["check"](
                    self.name, setting_field.name, getattr(self, setting_field.name)
                )
                object.__setattr__(self, setting_field.name, value)
        for setting, sha256_setting in self.files.items():
            path, sha256 = getattr(self, setting), getattr(self, sha256_setting)
            path = os.fspath(path) if isinstance(path, os.PathLike) else path
            if not isinstance(path, str | None):
                raise RecipeError(f"{self.name}: {setting} must be the path of a file, not {path!r}.")
            if not isinstance(sha256, str | None):
                raise RecipeError(
                    f"{self.name}: {sha256_setting} must be a SHA-256 in hexadecimal digits, not {sha256!r}."
                )
            object.__setattr__(self, setting, path)

    def settings(self) -> dict[str, Any]:
        """All settings, name -> value, as in a recipe file."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def map_settings(self) -> dict[str, Any]:
        """The settings that define its significance map, as keyword arguments of `significance.build`."""
        return {name: value for name, value in self.settings().items() if name not in self.not_of_the_map}

    def paths(self) -> dict[str, str]:
        """The paths of its weights files: setting -> path, for settings that are set."""
        return {setting: path for setting in self.files if (path := getattr(self, setting)) is not None}

    def read(self, setting: str) -> dict[str, Tensor]:
        """The tensors of the file in `setting`, in float32, or float64 if they are stored so.

        Raises:
            InputError: the file does not exist, cannot be read, or its SHA-256 is not the recorded one.
        """
        from ..zoo.models import read_weights

        return read_weights(self.paths()[setting], getattr(self, self.files[setting]))

    def with_hashes(self) -> Self:
        """A copy that records the SHA-256 of its files, where it is not recorded yet. Raises `InputError` for a missing
        file."""
        unrecorded = {self.files[setting]: path for setting, path in self.paths().items()}
        unrecorded = {setting: path for setting, path in unrecorded.items() if getattr(self, setting) is None}
        if not unrecorded:
            return self
        from ..zoo import file_sha256

        return replace(self, **{setting: file_sha256(path) for setting, path in unrecorded.items()})

    def __add__(self, other: BaseMethod | Recipe | str) -> Recipe:
        from ..recipe import Recipe  # here, because recipe.py imports this module

        return Recipe.of(self) + other

    def __str__(self) -> str:
        from ..recipe import Recipe

        return str(Recipe.of(self))


@dataclass(frozen=True)
class Method(BaseMethod, Generic[E]):
    """Base class of methods that drop, merge or correct tokens; E is the class of evidence that they get.

    A subclass defines where it acts (`place`), how many tokens it keeps (`left`), and reduces the tokens (`reduce`).
    """

    place: ClassVar[Place]
    """Where in the model it acts, see `PLACES`."""
    needs_class_token: ClassVar[bool] = False
    merges: ClassVar[bool] = False
    """Merges tokens: attention and pooling must weight each one by its size (ToMe's proportional attention)."""
    weighs: ClassVar[bool] = False
    """Changes how strongly attention weights a key, but not the token's size."""
    pads: ClassVar[bool] = False
    """May leave a different number of tokens in each image, see `Tokens.lengths`; attention and pooling must mask."""
    knows_padding: ClassVar[bool] = False
    """`reduce` handles `Tokens.lengths` itself. Other methods are called once for each length, without padding."""
    reads_exits: ClassVar[bool] = False
    """Reads the predictions of the heads between the host's blocks, as `ExitEvidence`."""
    attends: ClassVar[bool] = False
    """Computes the attention itself in the blocks where it acts, by `attend`."""
    on_tokens: ClassVar[bool] = True
    needs_prefix_head: ClassVar[str] = ""
    """The reason why the head must read only prefix tokens, as the end of a sentence; empty if it may read others."""

    @abstractmethod
    def left(self, site: TokenSite) -> int:
        """Number of tokens that remain of `site.tokens`; equal to `site.tokens` if the method does not act here."""

    def acts(self, site: TokenSite) -> bool:
        """Whether the method acts at this point."""
        return self.left(site) < site.tokens

    @property
    def exit_classes(self) -> str:
        """With `reads_exits`: the head that decides which classes are in the image, the `last` one or the `stage`'s."""
        return "last"

    @property
    def varies(self) -> bool:
        """Whether the number of tokens left differs between images, with `left` as its maximum; batches are padded."""
        return False

    @abstractmethod
    def reduce(self, tokens: Tokens, left: int, evidence: E) -> Tokens:
        """Reduce the tokens to `left`, prefix included. Called only where the method acts."""

    def attend(self, attention: BlockQKV) -> tuple[Tensor, Tensor]:
        """The attention's output (B, H, M, d_h), and `attention_scores` of the evidence; only with `attends`."""
        raise NotImplementedError

    def prepare(self, tokens: Tokens) -> Tensor | None:
        """Called with all embedded patches before any method acts; the result is `prepared` of the evidence."""
        return None

    def build(self, width: int, depth: int, pretrained: bool) -> nn.Module | None:
        """The method's learned layers, for `depth` blocks of `width` channels; `reduce` gets them as `evidence.module`.

        Their weights are loaded by `methods.weights.load_part` from the file in the setting `weights`, so that they are
        saved with recipes. If `pretrained` is False they may be random, to measure cost only.
        """
        return None

    def on(self, host: HostFacts) -> Self:
        """A copy in which settings that depend on the host are filled in; raises `UnsupportedHost` if the host lacks
        what they need."""
        if self.reads_exits and len(host.exits) < 2:
            raise UnsupportedHost(
                f"{type(host.model).__name__} cannot take {self.name}: it has no heads between its blocks that predict "
                "the class of each token. tokensieve.segmentation.segvit() and .setr() build models that have them."
            )
        return self

    def check(self, host: HostFacts, others: Sequence[BaseMethod]) -> None:
        """Check that the method works on this host, and together with the other acting methods of the recipe.

        Raises:
            UnsupportedHost: the host lacks something that the method needs.
            RecipeError: it cannot be combined with one of the others.
        """
        name = type(host.model).__name__
        if (self.merges or self.pads) and host.cannot_merge:
            raise UnsupportedHost(f"{name} cannot take {self.name}: {host.cannot_merge}. PaPr works on it.")
        if self.needs_class_token and not host.class_token:
            raise UnsupportedHost(
                f"{name} cannot take {self.name}: it reads a class token or its attention, and this host has none. "
                "Methods that need none, such as PaPr and ToMe, work on it."
            )
        if self.needs_prefix_head and not host.reads_prefix:
            raise UnsupportedHost(
                f"{name} cannot take {self.name}: its head reads patch tokens too, {self.needs_prefix_head}."
            )


@dataclass(frozen=True)
class PixelMethod(BaseMethod):
    """Base class of methods for hierarchical hosts: they select the pixels on which point-wise operators run."""

    on_pixels: ClassVar[bool] = True

    @abstractmethod
    def chooses(self, site: PixelSite) -> int | None:
        """Number of pixels to select before this block, valid until the next selection or the end of the stage; None if
        the method does not select pixels here."""

    @abstractmethod
    def choose(self, x: Tensor, count: int, site: PixelSite, evidence: Any) -> Pixels:
        """Select `count` pixels of this block's input map x (B, H, W, C).

        `evidence` is a `MapEvidence` for methods with `needs_significance`, an `Evidence` for others.
        """

    def build_for_stages(self, widths: Sequence[int], depths: Sequence[int], pretrained: bool) -> nn.Module | None:
        """The method's learned layers, for the channels and numbers of blocks of all stages; see `Method.build`."""
        return None


METHODS: dict[str, type[BaseMethod]] = {}
"""Name of a method in recipes -> class. Filled by `register`."""

SHORTHANDS: dict[str, Callable[..., BaseMethod]] = {}
"""Name in recipes -> function that returns a method with preset settings."""


def register(cls: type[BaseMethod]) -> type[BaseMethod]:
    """Class decorator that makes a method available in recipes under its `name`."""
    METHODS[cls.name] = cls
    return cls


def make(name: str, settings: dict[str, Any]) -> BaseMethod:
    """Create a method by its name in recipes; raises `RecipeError` for a wrong name or wrong or missing settings."""
    methods: dict[str, Callable[..., BaseMethod]] = {**METHODS, **SHORTHANDS}
    if name not in methods:
        raise RecipeError(f"There is no method {name!r}{nearest(name, methods)}. Known: {', '.join(sorted(methods))}.")
    parameters = inspect.signature(methods[name]).parameters
    valid = list(parameters)
    for setting in settings:
        if setting not in valid:
            raise RecipeError(
                f"{name} has no setting {setting!r}{nearest(setting, valid)}. Its settings: {', '.join(valid)}."
            )
    for setting, parameter in parameters.items():
        if parameter.default is parameter.empty and setting not in settings:
            raise RecipeError(f"{name} needs {setting}=; its settings: {', '.join(valid)}.")
    return methods[name](**settings)
