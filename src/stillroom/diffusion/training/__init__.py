"""Training: corruption of examples, loss, preference optimization and reinforcement learning."""
