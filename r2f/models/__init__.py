"""What a person does with a model, retrained or not: export it, measure it, ask it."""
