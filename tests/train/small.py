"""A task as small as can be, with everything that could go wrong in resuming: augmentation, batch norm, dropout."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import Dataset

from tokensieve.train.config import TrainConfig
from tokensieve.train.task import Loss, Order, batch_seed

SAMPLES, CLASSES = 40, 3


class Small(nn.Module):
    def __init__(self, dropout: float = 0.3, norm: bool = True) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(8, 16),
            nn.BatchNorm1d(16) if norm else nn.LayerNorm(16),
            nn.Dropout(dropout),
            nn.Linear(16, CLASSES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


class Batches(Dataset):
    def __init__(self, x, y, size, count, seed, noise):
        self.x, self.y, self.size, self.count, self.seed, self.noise = x, y, size, count, seed, noise
        self.order = Order(len(x), seed)

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        rows = [self.order[number * self.size + i] for i in range(self.size)]
        generator = torch.Generator().manual_seed(batch_seed(self.seed, number))
        x = self.x[rows]
        return x + self.noise * torch.randn(x.shape, generator=generator), self.y[rows]


class Sorting:
    """Which of three places a noisy point is from; five and a bit batches of eight an epoch."""

    name, identity, samples = "sorting", "forty points", SAMPLES

    def __init__(self, module: nn.Module | None = None, noise: float = 0.5) -> None:
        torch.manual_seed(0)
        self.module = Small() if module is None else module
        generator = torch.Generator().manual_seed(5)
        self.y = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        self.x = torch.eye(8)[self.y] * 2 + torch.randn(SAMPLES, 8, generator=generator)
        self.noise = noise
        self.calls = 0

    def batches(self, size, count, seed):
        return Batches(self.x, self.y, size, count, seed, self.noise)

    def loss(self, module, batch):
        self.calls += 1
        x, y = batch
        logits = module(x)
        right = (logits.argmax(1) == y).float().mean()
        return Loss(nn.functional.cross_entropy(logits.float(), y), {"right": 100 * right})

    @torch.no_grad()
    def evaluate(self, module):
        logits = module.eval()(self.x.to(next(module.parameters()).device)).cpu()
        return {"top1": 100 * (logits.argmax(1) == self.y).float().mean().item()}

    def weights(self, module):
        return dict(module.state_dict())


SETTINGS = TrainConfig(epochs=2.8, batch_size=8, lr=0.01, warmup=3, precision="fp32", validate_every=4, workers=0)
"""14 steps, of five batches an epoch."""
