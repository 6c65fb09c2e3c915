"""Names and files to models, with their weights and their normalisation."""

from .models import Loaded, create, file_sha256, without_memory
from .nano import BUNDLED, bundled_weights

__all__ = ["BUNDLED", "Loaded", "bundled_weights", "create", "file_sha256", "without_memory"]
