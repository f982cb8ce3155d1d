"""Parsers of file formats, one format a file.

Plain text, source code, Markdown, reStructuredText, CSV, JSON, notebooks, mail and HTML need only
the core install; PDF, Office and EPUB need the extra ``documents``.

Choice of libraries (license; size on disk with dependencies; results on 104 mixed files):

- HTML: our own tokenizer. selectolax (MIT, 4 MB) and lxml build better trees but drop the source
  position of a node, which a citation needs. trafilatura (Apache-2.0, 60 MB with babel and
  lxml) took 1.2 to 2.7 times as long on three real pages, 94-99 % of its words are in ours too,
  and its 2.3.1 did not import with lxml 6.1 without another package.
- PDF: pypdfium2 (Apache-2.0 or BSD-3; 8 MB; Chrome's engine) gives position and type of each
  character; columns, tables and headings are derived from these here. PyMuPDF is AGPL. markitdown,
  on pdfminer and pdfplumber (MIT), found fewer cells and no headings in several times the time.
- OCR: RapidOCR (Apache-2.0) has its models in the wheel (27 MB), so it works offline; with
  onnxruntime and opencv it takes 195 MB, so it is a separate extra. easyocr (Apache-2.0) and
  docling (MIT) download their models.
- Word, PowerPoint, Excel: python-docx, python-pptx, openpyxl (MIT), behind a check of the archive.
- Everything at once: docling (MIT) pulls in torch models that must be downloaded; markitdown (MIT,
  80 MB of onnxruntime for guessing file types) and kreuzberg (76 MB) give Markdown without offsets.
  Either can be added as a plug-in parser.
"""

REGISTRY = "turns the bytes of one file format into a Document"
