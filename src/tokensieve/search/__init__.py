"""The search behind `tokensieve.tune`: costs of recipes, families of recipes, and their loss."""
