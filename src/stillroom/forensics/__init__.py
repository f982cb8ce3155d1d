"""Room for the deepfake arms race: a forgery lab that marks all it makes, and detectors.

This room is not built yet: its place in the layers is kept, and nothing is registered.
"""

__all__: list[str] = []
