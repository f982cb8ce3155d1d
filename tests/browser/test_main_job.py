"""The main job in a browser: started, followed, stopped, resumed, asked, opened at its source."""

import re

import pytest
from tests.browser.conftest import check_axe, run_console, shoot
from tests.console_folder import write

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1500)]

SETTINGS = {
    "inputs.documents": "documents",
    "steps.records.target.train": "8",
    "steps.records.target.held_out": "2",
    "steps.records.include_passages": "4",
    "steps.student.train.steps": "24",
    "steps.report.max_questions": "2",
}
LONG_MS = 600_000
TOPICS = ("with", "try", "async", "dict", "class", "import", "exceptions", "context-managers")
QUESTION = "What does the with statement do?"


@pytest.fixture
def place(tmp_path):
    from pydoc_data.topics import topics

    write(tmp_path / "served" / "documents", {f"{one}.rst": topics[one] for one in TOPICS})
    return tmp_path / "served"


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
def test_the_main_job_from_its_form_to_the_source_of_an_answer(open_page, place, hand):
    with run_console(place) as console:
        page = open_page(console, "/make", bypass=True)
        user = hand(page)
        user.press(page.get_by_role("link", name="flow/make"))
        page.get_by_role("heading", name="Make: flow/make").wait_for()
        for path, value in SETTINGS.items():
            user.fill(page.locator(f'[data-path="{path}"]'), value)
        user.press(page.get_by_role("button", name="Estimate"))
        page.get_by_text("It fits this machine.").wait_for(timeout=120_000)
        user.press(page.get_by_role("button", name="Start"))
        page.wait_for_url("**/make/jobs/*")
        follow(page, user)
        ask(page, user)


def follow(page, user):
    """Follow the job into training, stop it there, resume it, and wait until it is finished."""
    page.locator("#doing", has_text=re.compile("^train: [2-9]")).wait_for(timeout=LONG_MS)
    assert page.locator("#steps li[aria-current]").text_content() == "student"
    user.press(page.get_by_role("button", name="Stop"))
    page.get_by_text("Stopped at a safe point.").wait_for(timeout=120_000)
    assert page.locator("#state .tag").text_content() == "cancelled"
    shoot(page, "job-stopped-desktop-light")
    check_axe(page)
    user.press(page.get_by_role("button", name="Resume"))
    page.get_by_role("link", name="Ask it").wait_for(timeout=LONG_MS)
    assert page.locator("#log", has_text="resumed").count() == 1
    page.get_by_role("img", name="loss over steps").wait_for()
    assert page.locator("#state .tag").text_content() == "finished"
    shoot(page, "job-finished-desktop-light")
    check_axe(page)


def ask(page, user):
    """Ask the run, and open what the answer or its refusal cites at the marked span."""
    user.press(page.get_by_role("link", name="Ask it"))
    user.fill(page.get_by_label("Question"), QUESTION)
    page.keyboard.press("Enter")
    page.locator(".passage").first.wait_for(timeout=120_000)
    page.locator(".answer:not([aria-busy])").wait_for(state="attached")
    shoot(page, "ask-answered-desktop-light")
    check_axe(page)
    link = page.locator("a.to-source").first
    user.press(link)
    mark = page.locator("#source-inside mark")
    mark.wait_for()
    assert mark.evaluate("one => one === document.activeElement")
    assert "its digest is the same" in page.locator("#source-inside").text_content()
    shoot(page, "source-desktop-light")
    check_axe(page)
    page.keyboard.press("Escape")
    mark.wait_for(state="hidden")
    assert link.evaluate("one => one === document.activeElement")
