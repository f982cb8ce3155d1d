"""A console in a process of its own, and a real headless Chromium before it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.console_folder import build_folder

ROOT = Path(__file__).resolve().parents[2]
SHOTS = ROOT / "build" / "browser" / "screenshots"
AXE = ROOT / "build" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"desktop": (1280, 860), "phone": (390, 844)}
_ADDRESS = re.compile(r"(http://\S+)/\?key=(\S+)")
_GRAVE = {"serious", "critical"}
WAIT_MS = 180_000  # a busy machine takes minutes for what takes a second


@contextlib.contextmanager
def run_console(folder):
    """Yield the address of a console over a folder, and its key."""
    code = "from stillroom.cli import main; main()"
    command = [sys.executable, "-c", code, "console", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        found = None
        while found is None:
            line = process.stderr.readline()
            assert line, "the console ended"
            found = _ADDRESS.search(line)
        reading = threading.Thread(target=process.stderr.read, daemon=True)
        reading.start()
        yield found[1], found[2]
        process.terminate()
        reading.join(30)
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


@pytest.fixture(scope="session")
def chromium():
    api = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("STILLROOM_CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium: apt install chromium, or STILLROOM_CHROMIUM=PATH")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"], timeout=WAIT_MS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def console(folder):
    with run_console(folder) as (address, key):
        yield address, key


@pytest.fixture
def judgments(folder):
    """The folder of what a test judges, which would change what the next one is answered."""
    kept = folder / "run.judgments"
    yield kept
    shutil.rmtree(kept)


@pytest.fixture
def open_page(chromium):
    """Open a page of a console that has let the browser in; faults of its scripts fail the test."""
    contexts, faults = [], []

    def open_(console, path, *, size="desktop", theme="light", bypass=False):
        wide, high = SIZES[size]
        context = chromium.new_context(
            viewport={"width": wide, "height": high}, color_scheme=theme, bypass_csp=bypass
        )
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(f"{page.url}: {error}"))
        page.on(
            "console",
            lambda said: (
                said.type == "error"
                and "/nowhere" not in said.location["url"]
                and faults.append(f"{page.url}: {said.text}")
            ),
        )
        page.on(
            "request",
            lambda asked: (
                asked.url.startswith((console[0], "data:", "blob:"))
                or faults.append(f"asked elsewhere: {asked.url}")
            ),
        )
        page.goto(f"{console[0]}/?key={console[1]}")
        page.goto(f"{console[0]}{path}")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults


def shoot(page, name):
    """Keep a picture of a page, and refuse one that is wider than its window."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)
    root = "document.documentElement"
    assert page.evaluate(f"{root}.scrollWidth - {root}.clientWidth") <= 0, f"{name} is too wide"


def check_axe(page):
    """Refuse a page in which axe finds a serious fault."""
    if not AXE.is_file():
        pytest.skip("needs axe-core: npm install --prefix build/browser axe-core")
    page.add_script_tag(path=AXE)
    found = page.evaluate("async () => (await axe.run(document)).violations")
    grave = [
        f"{one['id']}: {one['help']} ({node['html'][:160]})"
        for one in found
        for node in one["nodes"]
        if one["impact"] in _GRAVE
    ]
    assert not grave, "\n".join(grave)
