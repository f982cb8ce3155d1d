"""PDF layout analysis: characters, tables, reading order, headings and OCR."""
