"""Training: the recipes behind the bundled weights."""
