"""SegViT: a plain vision transformer with ATM (attention-to-mask) heads, one head per exit or a cascade of heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import InputError
from ..tokens import Tokens
from .atm import AtmCascade, AtmHead, AtmPrediction
from .resize import Resize
from .segmenter import Segmenter, latest_values


class SegViT(Segmenter):
    """SegViT as DToP uses it (`tokensieve.segmentation.segvit`): an ATM head after each block of `exits`.

    The last head gives the output; patches that exit earlier, by the method `dtop`, keep the masks of an earlier head.
    Heads also attend to the class token, if the backbone keeps it; it has no place on the maps.
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
        _check_decoder(width, heads, layers)
        atm_heads = [AtmHead(self.width, num_classes, width, heads, layers) for _ in self.levels]
        self.auxiliary_head, self.decode_head = nn.ModuleList(atm_heads[:-1]), atm_heads[-1]
        self.resize = Resize(published=2)  # the published code resizes a second time, to the same size

    @property
    def exits(self) -> tuple[int, ...]:
        """The blocks that are followed by a head."""
        return self.levels

    def predict(self, block: int, tokens: Tensor, real: Tensor | None) -> AtmPrediction:
        return self.heads[self.levels.index(block)](tokens, real)

    def assembled(self, stages: Sequence[tuple[AtmPrediction, Tensor, str]], grid: Sequence[int]) -> Tensor:
        """Probability of each class at each patch, (B, K, h, w): the mask that the head at which the patch exited gives
        it, times the probability that the class is in the image, from the last head (as published) or from the same
        head, as the setting `class_probability` says ("last" or "stage")."""
        from_own_head = stages[0][2] == "stage"
        if from_own_head:
            maps = [(prediction.probability, source) for prediction, source, _ in stages]
        else:
            maps = [(prediction.masks, source) for prediction, source, _ in stages]
        assembled = latest_values(maps).unflatten(2, tuple(grid))
        return assembled if from_own_head else AtmPrediction(stages[-1][0].classes, assembled).probability

    @property
    def heads(self) -> list[nn.Module]:
        """One head for each exit."""
        return [*self.auxiliary_head, self.decode_head]

    def scores(self, levels: Sequence[Tokens]) -> Tensor:
        tokens = levels[-1]
        return self.maps(self.decode_head(tokens.x), tokens.prefix, tokens.grid)

    def maps(self, prediction: AtmPrediction, prefix: int, grid: Sequence[int]) -> Tensor:
        """A prediction for the prefix tokens and all patches -> the probability of each class at each patch,
        (B, K, h, w)."""
        return prediction.on_grid(prefix, grid).probability

    def supervised(self, levels: Sequence[Tokens]) -> list[AtmPrediction]:
        return [
            head(tokens.x).on_grid(tokens.prefix, tokens.grid) for head, tokens in zip(self.heads, levels, strict=True)
        ]

    def staged(self, stages: Sequence[tuple[AtmPrediction, Tensor]], grid: Sequence[int]) -> list[AtmPrediction]:
        values = [(prediction.masks, source) for prediction, source in stages]
        masks = [latest_values(values[: index + 1]).unflatten(2, tuple(grid)) for index in range(len(values))]
        return [AtmPrediction(prediction.classes, mask) for (prediction, _), mask in zip(stages, masks, strict=True)]


class CascadedSegViT(Segmenter):
    """SegViT with a cascade of ATM heads: `tokensieve.segmentation.segvit_v1` and `segvit_v2`.

    Both pass their queries from the deepest block to the shallowest and sum the logits of the masks, which are resized
    to the size of the images before the sigmoid.

    Args:
        any_class: True is v1, in which each query predicts one of the K classes or none, and queries attend to each
            other. False is v2, in which each query belongs to one class and predicts whether it is in the image, and
            queries do not attend to each other.
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
        any_class: bool,
    ) -> None:
        super().__init__(backbone, num_classes, levels, class_token=class_token, final_norm=final_norm)
        width = self.width // 2 if width is None else width
        _check_decoder(width, heads, layers)
        self.any_class = any_class
        self.decode_head = AtmCascade(
            self.width,
            num_classes,
            len(self.levels),
            width,
            heads,
            layers,
            classes=num_classes + 1 if any_class else 2,
            self_attention=any_class,
        )
        self.resize = Resize(published=2)  # the published code resizes a second time, to the same size

    def answer(self, levels: Sequence[Tokens], size: Sequence[int]) -> Tensor:
        """The probability of each class at each pixel, (B, K, H, W), see `AtmPrediction.probability`."""
        prediction = self.decode_head([tokens.x for tokens in levels]).on_grid(levels[-1].prefix, levels[-1].grid)
        return AtmPrediction(prediction.classes, self.at_size(prediction.masks, size)).probability

    def supervised(self, levels: Sequence[Tokens]) -> list[AtmPrediction]:
        predictions = self.decode_head.stages([tokens.x for tokens in levels])
        return [prediction.on_grid(levels[-1].prefix, levels[-1].grid) for prediction in predictions]


def _check_decoder(width: int, heads: int, layers: int) -> None:
    if min(width, heads, layers) < 1 or width % heads:
        raise InputError(
            "The width of an ATM head must be a multiple of its heads, and heads and layers at least 1, not "
            f"width={width}, heads={heads}, layers={layers}."
        )
