"""A fleet of chips, each given just its amount of retraining: a plan for all, and one job a chip on any machines there are."""
