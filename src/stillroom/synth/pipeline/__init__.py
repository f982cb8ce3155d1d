"""Generation pipeline: inputs, step graph, scheduling, filter chain and results."""
