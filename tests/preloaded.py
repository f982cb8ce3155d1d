"""What the commands of the main job load besides: imported once, before they are forked.

``tests.processes`` has the server import this module; half a second of each command was the
language identifier, which unpacks itself, and another the modules that a recipe names.
"""

import gc

import peft  # noqa: F401
import ruamel.yaml  # noqa: F401
import snowballstemmer  # noqa: F401
import transformers.models.bert.modeling_bert  # noqa: F401

import stillroom.cli.recipes
import stillroom.cli.results
import stillroom.distill.jobs.export
import stillroom.distill.jobs.logits
import stillroom.evaluate.jobs.report
import stillroom.flow.pipeline
import stillroom.forensics.check.origin
import stillroom.merge.jobs.select
import stillroom.models.backends.transformers
import stillroom.models.embedders.static
import stillroom.rag.answer_selection.training_run
import stillroom.rag.answer_strategies.generate
import stillroom.rag.evaluation.answer_job
import stillroom.rag.index.builder
import stillroom.rag.jobs.answer_evaluation
import stillroom.rag.jobs.index
import stillroom.rag.jobs.reader
import stillroom.rag.stores.folder
import stillroom.synth.generators.grounded_qa
import stillroom.synth.jobs.records
import stillroom.synth.output.records
import stillroom.synth.pipeline.executor  # noqa: F401
from stillroom.text import PARSERS, detect_language

detect_language("A text that is long enough for the identifier to be asked.")
for name in PARSERS.names():  # which a folder of documents loads all
    PARSERS.get(name)
gc.freeze()  # a forked process neither looks at these objects nor copies their pages
