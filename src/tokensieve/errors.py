"""What can go wrong, said in sentences a user can act on.

The command line turns every `SieveError` into one line and exit code 2.
"""


class SieveError(Exception):
    """Parent of every error that this package raises on purpose."""


class UnsupportedHost(SieveError, TypeError):
    """A model, or a part of it, that a recipe cannot be applied to: says which, what is missing, what would work."""


class RecipeError(SieveError, ValueError):
    """A recipe that cannot be read, or settings that make no sense."""


class InputError(SieveError, ValueError):
    """Images, weights or files that cannot be used as they are."""
