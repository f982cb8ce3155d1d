"""Ways to choose among records that are all good enough: one method a file."""

SEAM = "which records of a pool are chosen, and why the others are not"
