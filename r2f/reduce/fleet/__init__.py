"""A fleet of chips, each given just its amount of retraining: a plan for all, and one job a chip on whatever machines there are."""
