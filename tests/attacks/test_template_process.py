"""The process that renders chat templates, under interruptions and odd surroundings."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from stillroom.errors import BackendError, MissingExtraError
from stillroom.models.tokenization import template_process
from stillroom.models.tokenization.template_process import render_template

TEXT = "{{ messages[0].content }}"
SLOW = "{% for i in range(90000) %}{% for j in range(30) %}{% endfor %}{% endfor %}slow"


def render(content: str, template: str = TEXT) -> str:
    [text] = render_template(template, [{"role": "user", "content": content}], {}, [(1, False)])
    return text


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    template_process._PROCESS.close()
    yield
    template_process._PROCESS.close()


# A handler of SIGALRM often raises TimeoutError, which is an OSError.
@pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeoutError])
def test_the_text_after_an_interruption_is_its_own(kind):
    def interrupt(signum, frame):
        raise kind

    assert render("first") == "first"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(kind):
            render("interrupted", SLOW)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert render("next") == "next"


def test_without_transformers_the_smallest_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setattr(template_process.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="transformers") as caught:
        render("text")
    assert "'stillroom[llamacpp]'" in str(caught.value)


def test_a_process_killed_from_outside_is_no_fault_of_the_template():
    assert render("first") == "first"
    idle = template_process._PROCESS._process
    os.kill(idle.pid, signal.SIGKILL)
    idle.wait()
    assert render("after an idle one") == "after an idle one"
    busy = template_process._PROCESS._process
    killer = threading.Timer(0.1, os.kill, (busy.pid, signal.SIGKILL))
    killer.start()
    assert render("x", SLOW) == "slow"
    killer.join()
    assert busy.returncode == -signal.SIGKILL


def run(code: str, **settings) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **settings
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_folder_with_a_colon_is_searched_and_the_working_folder_is_not(tmp_path):
    module = tmp_path / "a: b" / "transformers" / "utils" / "chat_template_utils.py"
    module.parent.mkdir(parents=True)
    for package in (module.parent, module.parent.parent):
        (package / "__init__.py").touch()
    module.write_text("def render_jinja_template(**settings):\n    return ['found'], None\n")
    for name in ("json.py", "transformers.py"):
        (tmp_path / name).write_text("raise SystemExit(3)")
    code = (
        f"import sys; sys.path[:] = [{str(tmp_path / 'a: b')!r}, *filter(None, sys.path), '']\n"
        "from stillroom.models.tokenization.template_process import render_template\n"
        "print(render_template('', [{'role': 'user', 'content': 'x'}], {}, [(1, False)]))"
    )
    assert run(code, cwd=tmp_path) == "['found']"


def test_the_renderer_is_imported_without_the_packages_around_it():
    code = (
        "import sys\n"
        "from stillroom.models.tokenization.template_process import _import_renderer\n"
        "text = _import_renderer()(conversations=[[]], chat_template='text')[0]\n"
        "print(text, 'torch' in sys.modules, hasattr(sys.modules['transformers'], '__version__'))"
    )
    assert run(code) == "['text'] False False"


def test_a_renderer_that_needs_the_packages_around_it_finds_them(tmp_path):
    utils = tmp_path / "transformers" / "utils"
    utils.mkdir(parents=True)
    (utils.parent / "__init__.py").write_text("NAME = 'found'\n")
    (utils / "__init__.py").touch()
    (utils / "chat_template_utils.py").write_text(
        "def render_jinja_template(**settings):\n    from .. import NAME\n    return [NAME], None\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from stillroom.models.tokenization.template_process import render_template\n"
        "print(render_template('', [{'role': 'user', 'content': 'x'}], {}, [(1, False)]))"
    )
    assert run(code) == "['found']"


def test_a_process_that_does_not_start_is_not_blamed_on_the_template(monkeypatch):
    monkeypatch.setattr(template_process, "_CODE", "raise SystemExit(5)  # {} {}")
    with pytest.raises(BackendError) as caught:
        render("x")
    assert caught.value.code == "backend.template-process"
    assert "status 5" in str(caught.value)


def test_a_forked_process_renders_with_its_own_while_its_parent_renders():
    assert render("first") == "first"
    thread = threading.Thread(target=render, args=("x" * 3_000_000,))
    thread.start()
    time.sleep(0.005)
    child = os.fork()
    if child == 0:
        os._exit(0 if render("child") == "child" else 1)
    assert render("parent") == "parent"
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
