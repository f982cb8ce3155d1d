"""Invisible watermarks for images and audio, their error correction, and content fingerprints."""
