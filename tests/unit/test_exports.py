"""A package gives what its TYPE_CHECKING block imports, and nothing else."""

import subprocess
import sys

import pytest

import stillroom.serve
from stillroom.exports import export_lazily


def test_a_name_is_that_of_its_module_and_is_imported_on_first_use():
    code = (
        "import sys, stillroom.evaluate as package\n"
        "name = 'stillroom.evaluate.charts'\n"
        "assert name not in sys.modules\n"
        "assert package.Plot is sys.modules[name].Plot\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error_that_names_the_package():
    with pytest.raises(AttributeError, match=r"'stillroom\.serve' has no attribute 'nothing'"):
        _ = stillroom.serve.nothing
    with pytest.raises(AttributeError):
        export_lazily("stillroom.serve")("TYPE_CHECKING")
