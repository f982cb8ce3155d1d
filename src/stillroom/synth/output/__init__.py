"""Outputs of a run: report page, rejected records and dataset export."""
