"""Teachers of a job: local checkpoints, endpoints, and ensembles of both."""
