"""The arrays of Meso4 as Keras names them, drawn at random."""

import numpy as np


def keras_arrays(rng, pixels=256):
    sizes = ((3, 3, 8), (5, 8, 8), (5, 8, 16), (5, 16, 16))
    arrays = {}
    for at, (size, given, made) in enumerate(sizes, start=1):
        arrays[f"conv2d_{at}/kernel"] = rng.normal(0, 0.2, (size, size, given, made))
        arrays[f"conv2d_{at}/bias"] = rng.normal(0, 0.1, made)
        for name in ("gamma", "beta", "moving_mean"):
            arrays[f"batch_normalization_{at}/{name}"] = rng.normal(1, 0.2, made)
        arrays[f"batch_normalization_{at}/moving_variance"] = rng.uniform(0.5, 2, made)
    arrays["dense_1/kernel"] = rng.normal(0, 0.05, (16 * (pixels // 32) ** 2, 16))
    arrays["dense_1/bias"] = rng.normal(0, 0.1, 16)
    arrays["dense_2/kernel"] = rng.normal(0, 0.5, (16, 1))
    arrays["dense_2/bias"] = rng.normal(0, 0.5, 1)
    return {name: value.astype(np.float32) for name, value in arrays.items()}
