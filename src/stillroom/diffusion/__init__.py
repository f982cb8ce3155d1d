"""Room for masked diffusion language models: training, sampling, likelihood and conversion.

This room is not built yet: its place in the layers is kept, and nothing is registered.
"""

__all__: list[str] = []
