"""What happens to tokens: one file a method. To add one, write its file and name it here."""

from .base import METHODS, Evidence, Here, Method, register
from .papr import PaPr
from .tome import ToMe

__all__ = ["METHODS", "Evidence", "Here", "Method", "PaPr", "ToMe", "register"]
