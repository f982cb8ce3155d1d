"""Orders: which open place is written first."""

SEAM = "which open place is written first"
