"""What people do to real pictures, one file each."""

SEAM = "benign edits of real pictures, which are no forgeries"
