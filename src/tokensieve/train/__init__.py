"""Training: one loop for all tasks, and the tasks: bundled models, photographs, segmenters, healing, proposals."""

from .config import TrainConfig
from .loop import read_log, train
from .task import Loss, Task
from .teacher import Teacher, remember

__all__ = ["Loss", "Task", "Teacher", "TrainConfig", "read_log", "remember", "train"]
