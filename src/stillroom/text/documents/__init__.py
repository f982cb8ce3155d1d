"""Document building, and the markup and office formats that several parsers share."""
