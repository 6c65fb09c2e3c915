"""The search behind `tokensieve.tune`: what a recipe costs, which recipes there are, how far each is from the model."""
