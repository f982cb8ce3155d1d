"""Near-duplicate removal, benchmark decontamination and leakage detection in record files."""
