"""How long a step takes: shapes of steps, a roofline to start from, a model learned online."""
