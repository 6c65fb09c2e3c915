"""Recipes on the Hugging Face Hub, with their trained weights, an evaluation and a model card."""

from .published import HubRecipe

__all__ = ["HubRecipe"]
