"""SegViT: a plain vision transformer with ATM heads, one head per exit or a cascade of heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InputError
from ..tokens import Tokens
from .atm import AtmCascade, AtmHead, AtmPrediction
from .resize import Resize
from .segmenter import Segmenter, written


class SegViT(Segmenter):
    """SegViT as DToP uses it: an ATM head at each exit; the last one gives the output.

    The heads read the class token too, if it is kept; the maps leave it out.
    """

    probabilities = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        exits: Sequence[int],
        *,
        width: int,
        heads: int,
        layers: int,
        class_token: bool,
        final_norm: bool,
    ) -> None:
        super().__init__(backbone, num_classes, exits, class_token=class_token, final_norm=final_norm)
        _check(width, heads, layers)
        atm_heads = [AtmHead(self.width, num_classes, width, heads, layers) for _ in self.levels]
        self.auxiliary_head, self.decode_head = nn.ModuleList(atm_heads[:-1]), atm_heads[-1]
        self.resize = Resize(published=2)

    @property
    def exits(self) -> tuple[int, ...]:
        """The blocks that are followed by a head."""
        return self.levels

    def predict(self, block: int, tokens: Tensor, real: Tensor | None) -> AtmPrediction:
        return self.heads[self.levels.index(block)](tokens, real)

    def assembled(self, stages: Sequence[tuple[AtmPrediction, Tensor, str]], grid: Sequence[int]) -> Tensor:
        """Masks of the stage after which a patch exited, times the presence of its class as predicted by the last head
        (the published rule, 2.1), or by that stage's own head."""
        per_stage = stages[0][2] == "stage"
        if per_stage:
            maps = [(prediction.probability, source) for prediction, source, _ in stages]
        else:
            maps = [(prediction.masks, source) for prediction, source, _ in stages]
        canvas = written(maps).unflatten(2, tuple(grid))
        return canvas if per_stage else AtmPrediction(stages[-1][0].classes, canvas).probability

    @property
    def heads(self) -> list[nn.Module]:
        """One head for each exit."""
        return [*self.auxiliary_head, self.decode_head]

    def scores(self, levels: Sequence[Tokens]) -> Tensor:
        tokens = levels[-1]
        return self.maps(self.decode_head(tokens.x), tokens.prefix, tokens.grid)

    def maps(self, prediction: AtmPrediction, prefix: int, grid: Sequence[int]) -> Tensor:
        """A prediction for all tokens of the grid -> the probability of each class at each patch, (B, K, h, w)."""
        return prediction.on_grid(prefix, grid).probability

    def supervised(self, levels: Sequence[Tokens]) -> list[AtmPrediction]:
        return [
            head(tokens.x).on_grid(tokens.prefix, tokens.grid) for head, tokens in zip(self.heads, levels, strict=True)
        ]

    def staged(self, stages: Sequence[tuple[AtmPrediction, Tensor]], grid: Sequence[int]) -> list[AtmPrediction]:
        maps = [(prediction.masks, source) for prediction, source in stages]
        canvases = [written(maps[: index + 1]).unflatten(2, tuple(grid)) for index in range(len(maps))]
        return [
            AtmPrediction(prediction.classes, canvas) for (prediction, _), canvas in zip(stages, canvases, strict=True)
        ]


class CascadedSegViT(Segmenter):
    """SegViT v1, whose queries predict any class, and the form with a query for each class and no self-attention.

    Both pass their queries from the deepest block to the shallowest and sum the masks, which are resized before the
    sigmoid.
    """

    probabilities = True

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        levels: Sequence[int],
        *,
        width: int | None,
        heads: int,
        layers: int,
        class_token: bool,
        final_norm: bool,
        contracts: bool,
    ) -> None:
        super().__init__(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm)
        width = self.width // 2 if width is None else width
        _check(width, heads, layers)
        self.contracts = contracts
        self.decode_head = AtmCascade(
            self.width,
            num_classes,
            len(self.levels),
            width,
            heads,
            layers,
            classes=num_classes + 1 if contracts else 2,
            self_attention=contracts,
        )
        self.resize = Resize(published=2)

    def answer(self, levels: Sequence[Tokens], size: Sequence[int]) -> Tensor:
        """(B, K, H, W): presence or class probability of each query times its mask, over queries."""
        prediction = self.decode_head([tokens.x for tokens in levels]).on_grid(levels[-1].prefix, levels[-1].grid)
        return AtmPrediction(prediction.classes, self.at_size(prediction.masks, size)).probability

    def supervised(self, levels: Sequence[Tokens]) -> list[AtmPrediction]:
        predictions = self.decode_head.stages([tokens.x for tokens in levels])
        return [prediction.on_grid(levels[-1].prefix, levels[-1].grid) for prediction in predictions]


def _check(width: int, heads: int, layers: int) -> None:
    if min(width, heads, layers) < 1 or width % heads:
        raise InputError(
            "The width of an ATM head must be a multiple of its heads, and it has at least one layer; not "
            f"width={width}, heads={heads}, layers={layers}."
        )
