"""Ways to make one tensor of several."""

SEAM = "ways to make one checkpoint of several"
