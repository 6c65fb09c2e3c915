"""The training of the bundled video models on moving scenes.

As for images, a second loss labels every patch from the exact masks. In addition to the 80 classes the loss has terms
for digit and direction alone; directions are learnt at once, digits take longer. The transformer is trained on single
moments first, pairs of frames with their temporal position, which take a quarter of the time per step and show the
strokes equally well; then on whole clips.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..data.moving_scenes import DIRECTIONS, MovingScene, MovingScenes
from ..errors import RecipeError
from ..zoo.nano_video import CLASSES, nano_video, nano_video_proposal
from .config import TrainConfig
from .nano import cell_loss, normalise
from .task import Loss, halved

DIGITS = CLASSES // len(DIRECTIONS)
TUBELET = (2, 8, 8)
"""Frames, height and width of a patch, and of a cell of the proposal's features."""
VALIDATION_SCENES = 500
"""Number of validation scenes."""
RATES = {"nano_video": 1.5e-3, "nano_video_proposal": 4e-3}
SEEN = {"nano_video": 160_000, "nano_video_proposal": 24_000}
"""Number of moving scenes that each bundled model was trained on."""
SHORT = {"nano_video": 0.75, "nano_video_proposal": 0.0}
"""Share of these, at the start of the training, of which only a single moment is used."""


Batch = tuple[Tensor, Tensor, Tensor, int]
"""Clips (B, T, 3, H, W) uint8, labels (B,), masks (B, T, H, W), and the temporal grid position of their first frame."""


class NanoVideoOutputs(NamedTuple):
    """Logits or log-probabilities for clips and their P patches, and a penalty on the features, a scalar."""

    clips: Tensor
    """(B, 80)"""
    digits: Tensor
    """(B, P, 10 + 1), the background last."""
    directions: Tensor
    """(B, P, 8 + 1), the background last."""
    price: Tensor


class NanoVideoHost(nn.Module):
    """The nano VideoMAE with a second head on its patches, which is dropped after training."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nano_video()
        self.patches = nn.Linear(self.model.config.hidden_size, DIGITS + 1 + len(DIRECTIONS) + 1)
        # transformers' std of 0.02 is for wide models: in this narrow one the positions would dominate the patches.
        for parameter in self.model.videomae.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter.flatten(1))

    def forward(self, clips: Tensor, moment: int = 0) -> NanoVideoOutputs:
        """Clips, or some of their frames, (B, T, 3, H, W); `moment` is the temporal grid position of the first one."""
        embeddings, encoder = self.model.videomae.embeddings, self.model.videomae.encoder
        patches = embeddings.patch_embeddings(clips)
        first = moment * patches.shape[1] // (clips.shape[1] // TUBELET[0])
        positions = embeddings.position_embeddings[:, first : first + patches.shape[1]]
        tokens = encoder(patches + positions.to(patches)).last_hidden_state
        digits, directions = self.patches(tokens).split((DIGITS + 1, len(DIRECTIONS) + 1), -1)
        logits = self.model.classifier(self.model.fc_norm(tokens.mean(1)))
        return NanoVideoOutputs(logits, digits, directions, clips.new_zeros(()))


class NanoVideoRanker(nn.Module):
    """The nano 3-D ConvNet; its own classifier labels every cell, and the logit of the background is always 0.

    As in `nano.NanoProposal` the mean of all features is part of the loss, so that cells without a digit have none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = nano_video_proposal()

    def forward(self, clips: Tensor, moment: int = 0) -> NanoVideoOutputs:
        features = self.model.features(clips.transpose(1, 2))
        cells = self.model.head.fc(features.flatten(2).transpose(1, 2))
        cells = F.pad(cells, (0, 1)).log_softmax(-1)
        parts = cells[..., :-1].unflatten(-1, (DIGITS, len(DIRECTIONS)))
        digits, directions = (torch.cat([parts.logsumexp(over), cells[..., -1:]], dim=-1) for over in (-1, -2))
        return NanoVideoOutputs(self.model.head(features), digits, directions, features.mean())


WRAPPED: dict[str, type[nn.Module]] = {"nano_video": NanoVideoHost, "nano_video_proposal": NanoVideoRanker}


class ReadMovingDigits:
    """The task: classify the digit in the clip and its direction.

    Args:
        name: name of a bundled model, which starts with random weights.
        scenes: number of training scenes.
        seed: random seed of the moving scenes.
        validation_scenes: number of validation scenes.
    """

    def __init__(self, name: str, scenes: int, seed: int = 0, validation_scenes: int = VALIDATION_SCENES) -> None:
        self.name, self.samples, self.seed, self.validation_scenes = name, scenes, seed, validation_scenes
        self.identity = (
            f"{name}, {scenes} moving scenes of seed {seed}, {SHORT[name]} short, {validation_scenes} looked at"
        )
        self.module: Any = WRAPPED[name]()
        self._validation: MovingScene | None = None

    def batches(self, size: int, count: int, seed: int) -> Dataset[Any]:
        return _Batches(MovingScenes("train", size * count, seed=self.seed), size, int(count * SHORT[self.name]))

    def loss(self, module: Any, batch: Batch) -> Loss:
        clips, labels, masks, moment = batch
        outputs = NanoVideoOutputs(*(tensor.float() for tensor in module(normalise(clips.float() / 255), moment)))
        share = F.avg_pool3d(masks[:, None].float(), TUBELET).flatten(1)
        digit, direction = labels // len(DIRECTIONS), labels % len(DIRECTIONS)
        classes = outputs.clips.log_softmax(1)
        parts = classes.unflatten(1, (DIGITS, len(DIRECTIONS)))
        clip_loss = F.nll_loss(classes, labels)
        loss = clip_loss + F.nll_loss(parts.logsumexp(2), digit) + F.nll_loss(parts.logsumexp(1), direction)
        loss = loss + cell_loss(outputs.digits, digit, share) + cell_loss(outputs.directions, direction, share)
        accuracy = (outputs.clips.argmax(1) == labels).float().mean()
        return Loss(loss + outputs.price, {"clip_loss": clip_loss, "train_top1": 100 * accuracy})

    def evaluate(self, module: Any) -> dict[str, float]:
        if self._validation is None:
            scenes = MovingScenes("validation", self.validation_scenes, seed=self.seed)
            self._validation = scenes.batch(range(self.validation_scenes))
        predicted, labels = classes_of(module, self._validation), self._validation.labels
        columns = {"validation_top1": predicted == labels}
        columns["validation_digits"] = predicted // len(DIRECTIONS) == labels // len(DIRECTIONS)
        columns["validation_directions"] = predicted % len(DIRECTIONS) == labels % len(DIRECTIONS)
        return {name: 100 * right.float().mean().item() for name, right in columns.items()}

    def weights(self, module: Any) -> dict[str, Tensor]:
        return halved(module.model.state_dict())


def prepare(
    name: str, *, scenes: int | None = None, seed: int = 0, validation_scenes: int = VALIDATION_SCENES, workers: int = 1
) -> tuple[TrainConfig, ReadMovingDigits]:
    """The configuration and task of a bundled video model for `loop.train`; by default those of the bundled weights.

    Raises:
        RecipeError: there is no bundled video model with that name.
        InputError: transformers is not installed, which `nano_video` needs.
    """
    if name not in WRAPPED:
        raise RecipeError(f"There is no bundled video model {name!r}, only {', '.join(WRAPPED)}.")
    torch.manual_seed(seed)
    task = ReadMovingDigits(name, SEEN[name] if scenes is None else scenes, seed, validation_scenes)
    config = TrainConfig(
        optimizer_args={"betas": (0.9, 0.99)}, batch_size=32, lr=RATES[name], warmup=200, precision="fp32", seed=seed,
        workers=workers,
    )  # fmt: skip
    return config, task


@torch.no_grad()
def classes_of(module: Any, scenes: MovingScene, batch: int = 50) -> Tensor:
    """(B,) the class that a wrapped model predicts for each clip; sets the model to eval mode."""
    module.eval()
    device = next(module.parameters()).device
    predicted = [module(normalise(clips.to(device))).clips.argmax(1).cpu() for clips in scenes.clips.split(batch)]
    return torch.cat(predicted)


class _Batches(Dataset[Batch]):
    """Batches of clips, uint8: the first `short` batches have single moments, going through all moments in turn."""

    def __init__(self, scenes: MovingScenes, size: int, short: int = 0) -> None:
        self.scenes, self.size, self.short = scenes, size, short

    def __len__(self) -> int:
        return len(self.scenes) // self.size

    def __getitem__(self, number: int) -> Batch:
        length = TUBELET[0]
        moment, frames = 0, slice(None)
        if number < self.short:
            moment = number % (self.scenes.frames // length)
            frames = slice(length * moment, length * (moment + 1))
        clips, labels, masks = self.scenes.batch(range(number * self.size, (number + 1) * self.size), frames)
        return (clips * 255).round().byte(), labels, masks, moment
