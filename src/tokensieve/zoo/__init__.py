"""Names and files to models, with their weights and their normalisation."""

from .models import Loaded, create, file_sha256

__all__ = ["Loaded", "create", "file_sha256"]
