"""What starts, lists or checks loads none of the heavy libraries."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        (
            "from stillroom.cli import stillroom\n"
            "for words in ['--help'], ['list', 'methods'], ['show', 'linear']:\n"
            "    stillroom.main(words, standalone_mode=False)",
            "torch transformers pydantic numpy pyarrow",
        ),
        (
            "from click.shell_completion import ShellComplete\n"
            "from stillroom.cli.app import stillroom\n"
            "assert ShellComplete(stillroom, {}, 'stillroom', 'X').get_completions([], 'm')",
            "stillroom.cli.merge",
        ),
        (
            "from stillroom.registry import list_kinds, list_methods\n"
            "list(list_methods()), list_kinds()",
            "pydantic torch",
        ),
        (
            "from stillroom.recipes import find_recipe_class, list_kinds, parse_recipe\n"
            "[find_recipe_class(kind) for kind in list_kinds()]\n"
            "for text in (\n"
            "    'kind: merge.weights\\nmethod: ties\\nbase_model: x\\nmodels: [{model: y}]',\n"
            "    'kind: distill.logits\\nteacher: t\\nrecords: r\\nmethod: jsd',\n"
            "    'kind: synth.records\\nindex: x',\n"
            "):\n"
            "    parse_recipe('version: 1\\n' + text, 'r.yaml', ())",
            "torch transformers pyarrow",
        ),
        ("import stillroom.train as t; t.TrainSettings()", "torch"),
        (
            "import stillroom.models as m; m.open_text_model; m.TextModel; m.BACKENDS",
            "torch transformers xllamacpp aiohttp",
        ),
        (
            "import numpy as np\n"
            "from stillroom.rag.search_engines.dense import DenseEngine\n"
            "rows = DenseEngine([np.eye(64, dtype='f4')]).search(np.eye(64, dtype='f4')[5], 1)[0]\n"
            "assert rows.tolist() == [5]",
            "torch",
        ),
        (
            "from stillroom.text.parser_process import serve\n"
            "from stillroom.text import PARSERS\n"
            "PARSERS.build({'name': 'md'})",
            "numpy psutil filelock stillroom.jobs stillroom.objects stillroom.provenance.evidence",
        ),
        ("import stillroom.serve.jobs.worker", "fastapi starlette torch numpy"),
        ("import stillroom.models.backends.llamacpp", "torch transformers"),
    ],
    ids=[
        *("cli", "completion", "registry", "recipes", "train", "models"),
        *("a small index", "parser", "worker of jobs", "llama.cpp"),
    ],
)
def test_what_starts_or_is_checked_loads_nothing_heavy(code, heavy):
    code += f"\nimport sys\nprint([n for n in sys.modules if n.startswith({tuple(heavy.split())})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout[-200:] + done.stderr
