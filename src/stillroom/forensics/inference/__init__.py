"""Trained detectors, calibration, training domain, and findings on images, video, and audio."""
