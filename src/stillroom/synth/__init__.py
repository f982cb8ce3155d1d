"""Synthetic data: records that a teacher model generates, filtered, selected and exported.

Documents are split into ``train`` and ``held_out`` before any request, so that no document feeds
both. A generator asks the teacher about one passage at a time; filters judge every record and give
a reason for each rejection; rejected records are written to ``dropped.jsonl`` with that reason.
A teacher behind an endpoint is asked by ``models.endpoints.client``: retries, rate limits, backoff.

Papers: answer-first questions (Alberti et al. 2019, arXiv:1906.05416; Lewis et al. 2021,
arXiv:2102.07033), Magpie (Xu et al. 2024, arXiv:2406.08464), rephrasing (Maini et al. 2024,
arXiv:2401.16380), MinHash (Broder 1997), decontamination by weighted words (after Yang et
al. 2023, arXiv:2311.04850; no n-grams).

Input: an index (its passages), or a file of passages or records. Output: an artifact of kind
``records`` with ``records.jsonl``, ``dropped.jsonl`` and ``report.json``.

Job kinds: ``synth.records`` generates and filters, ``synth.dedup`` and ``synth.decontaminate``
clean files of records, ``synth.data_value`` and ``synth.diversity`` measure what data do to
models.

Importing this package imports neither torch nor a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.synth.interfaces import FILTERS, GENERATORS, Filter, Generator
    from stillroom.synth.jobs.records import RecordsRecipe
    from stillroom.synth.output.records import preview_records

__all__ = ["FILTERS", "GENERATORS", "Filter", "Generator", "RecordsRecipe", "preview_records"]

__getattr__ = export_lazily(__name__)
