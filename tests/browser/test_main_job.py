"""The main job in a browser: started, followed, stopped, resumed, asked, opened at its source."""

import re

import pytest
from tests.browser.conftest import check_axe, run_console, shoot
from tests.integration.main_job import MainJob

pytestmark = [pytest.mark.browser, pytest.mark.timeout(2400)]

SETTINGS = {
    "inputs.documents": "documents",
    "inputs.teacher": "teacher",
    "inputs.embedder": "builtin:static",
    "steps.records.num_records.train": "16",
    "steps.reader.train.epochs": "150",
    "steps.report.max_questions": "4",
}
MORE = (
    "steps.index.origin={kind: human, license: CC0-1.0}",
    "steps.records.model=scripted:script.json",
    "steps.records.pipeline.filters=[shape, question_form, grounded, duplicate]",
    "steps.reader.base=encoder",
    "steps.reader.start=null",
    "steps.reader.train.batch_size=4",
    "steps.reader.train.threads=1",
    "steps.reader.train.save_every_s=0",
    "steps.report.compare.model_questions=2",
    "steps.report.max_new_tokens=8",
)
LONG_MS = 600_000
QUESTION = "What does the old mill of Alder grind every morning?"


@pytest.fixture
def main_console(tmp_path):
    """Serve a folder with documents, a writer of questions about them, and a teacher.

    Asked for before ``open_page``, so that no page is left that asks a server which has ended.
    """
    (tmp_path / "served").mkdir()
    with run_console(MainJob(tmp_path / "served").folder) as console:
        yield console


class Mouse:
    """Does everything by pointing."""

    def __init__(self, page):
        self.page = page

    def press(self, where):
        where.click()

    def fill(self, where, text):
        where.click()
        self.page.keyboard.type(text)


class Keyboard(Mouse):
    """Does everything by keys: reaches what it wants by Tab alone."""

    def reach(self, where):
        where.wait_for()
        for _ in range(150):
            if where.evaluate("one => one === document.activeElement"):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not reach {where}")

    def press(self, where):
        self.reach(where)
        self.page.keyboard.press("Enter")

    def fill(self, where, text):
        self.reach(where)
        self.page.keyboard.type(text)


@pytest.mark.parametrize("hand", [Mouse, Keyboard])
def test_the_main_job_from_its_form_to_the_source_of_an_answer(main_console, open_page, hand):
    page = open_page(main_console, "/make", bypass=True)
    user = hand(page)
    user.press(page.get_by_role("link", name="flow/make"))
    page.get_by_role("heading", name="Make: flow/make").wait_for()
    for path, value in SETTINGS.items():
        user.fill(page.locator(f'[data-path="{path}"]'), value)
    user.fill(page.get_by_label("More settings"), "\n".join(MORE))
    user.press(page.get_by_role("button", name="Estimate"))
    page.get_by_text("It fits this machine.").wait_for()
    user.press(page.get_by_role("button", name="Start"))
    page.wait_for_url("**/make/jobs/*")
    follow(page, user)
    ask(page, user)


def follow(page, user):
    """Follow the job into its long training, stop it there, resume it, and see it finished."""
    page.locator("#doing", has_text=re.compile("^train: [1-9]")).wait_for(timeout=LONG_MS)
    assert page.locator("#steps li[aria-current]").text_content() == "reader"
    user.press(page.get_by_role("button", name="Stop"))
    page.get_by_text("Stopped at a safe point.").wait_for()
    assert page.locator("#state .tag").text_content() == "cancelled"
    shoot(page, "job-stopped-desktop-light")
    check_axe(page)
    user.press(page.get_by_role("button", name="Resume"))
    page.get_by_role("link", name="Ask it").wait_for(timeout=LONG_MS)
    assert page.locator("#log", has_text="resumed").count() == 1
    page.get_by_role("img", name="loss over steps", exact=True).wait_for()
    assert page.locator("#state .tag").text_content() == "finished"
    shoot(page, "job-finished-desktop-light")
    check_axe(page)


def ask(page, user):
    """Ask the run, and open what the answer or its refusal cites at the marked span."""
    user.press(page.get_by_role("link", name="Ask it"))
    user.fill(page.get_by_label("Question"), QUESTION)
    page.keyboard.press("Enter")
    page.locator(".passage").first.wait_for()
    page.locator(".answer:not([aria-busy])").wait_for(state="attached")
    shoot(page, "ask-answered-desktop-light")
    check_axe(page)
    link = page.locator("a.to-source").first
    user.press(link)
    mark = page.locator("#source-inside mark").first  # a citation may have several quotes
    mark.wait_for()
    assert mark.evaluate("one => one === document.activeElement")
    assert "its digest is the same" in page.locator("#source-inside").text_content()
    shoot(page, "source-desktop-light")
    check_axe(page)
    page.keyboard.press("Escape")
    mark.wait_for(state="hidden")
    assert link.evaluate("one => one === document.activeElement")
