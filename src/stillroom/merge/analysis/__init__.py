"""Analysis of parent models: task vector agreement, loss paths and calibration statistics."""
