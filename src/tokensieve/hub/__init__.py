"""Recipes on the Hugging Face Hub: with their trained weights, what they were measured to lose, and a model card."""

from .published import HubRecipe

__all__ = ["HubRecipe"]
