"""Selection, hyperparameter search and learned coefficients of merges."""
