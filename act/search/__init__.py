"""Search over the fields of a recipe: many runs, the best under the recipe's target kept."""
