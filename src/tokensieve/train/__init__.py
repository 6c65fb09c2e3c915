"""Training: one loop for whatever is learnt, and the tasks behind the bundled weights and small models."""

from .config import TrainConfig
from .loop import read_log, train
from .task import Loss, Task
from .teacher import Teacher, remember

__all__ = ["Loss", "Task", "Teacher", "TrainConfig", "read_log", "remember", "train"]
