"""Generation pipeline: inputs, steps, scheduling, filter chain and results."""
