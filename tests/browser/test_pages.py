"""Every page in light and dark, on a desktop and a phone: whole, legible and without faults."""

import json

import pytest
from tests.browser.conftest import WAIT_MS, check_axe, shoot

from stillroom.text.line_wrapping import find_soft_breaks

pytestmark = pytest.mark.browser

PAGES = {
    "ask": "/ask",
    "make": "/make",
    "make-main": "/make/new?kind=flow/make",
    "make-merge": "/make/new?kind=merge.weights",
    "make-synth": "/make/new?kind=synth.records",
    "records": "/records?at=records",
    "dropped": "/records?at=records&show=dropped",
    "generators": "/records/generators",
    "models": "/models",
    "compare": "/models/compare?m=run/steps/model",
    "lineage": "/lineage",
    "lineage-of": "/lineage?at=run/steps/index",
    "proof": "/proof?at=run",
    "merge": "/merge",
    "diffusion": "/diffusion",
    "forensics": "/forensics",
    "problem": "/nowhere",
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole_and_open_to_all(open_page, console, name, size, theme):
    page = open_page(console, PAGES[name], size=size, theme=theme, bypass=True)
    page.wait_for_load_state("networkidle")
    shoot(page, f"{name}-{size}-{theme}")
    check_axe(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_text_is_unmasked_and_scrubbed_by_keyboard(open_page, console, theme):
    page = open_page(console, "/diffusion", theme=theme, bypass=True)
    page.get_by_label("New tokens", exact=True).fill("12")
    page.locator("#write:enabled").wait_for()  # its script has come
    for order in ("confidence", "random"):
        page.get_by_label("Order").select_option(order)
        page.get_by_role("button", name="Write").press("Enter")
        page.locator("#rows tr", has_text=order).wait_for()
        page.locator("#write:enabled").wait_for()
    slider = page.get_by_label("Step", exact=True).first
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext").startswith("step 1 of")
    slider.press("End")
    assert ", 0 masked" in slider.get_attribute("aria-valuetext")
    shoot(page, f"diffusion-written-{theme}")
    check_axe(page)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_conflict_and_the_line_between_two_are_seen(open_page, console, theme):
    page = open_page(console, "/merge", theme=theme, bypass=True)
    for name in ("other", "third"):
        page.locator(f'input[name="m"][value="{name}"]').check()
    page.get_by_label("Common base model").select_option("run/steps/model")
    page.locator("#conflict:enabled").wait_for()
    page.get_by_role("button", name="Show conflict").press("Enter")
    page.locator("#layers tr", has_text="layer 1").wait_for()
    page.get_by_label("From", exact=True).select_option("other")
    page.get_by_label("To", exact=True).select_option("third")
    page.get_by_role("button", name="Measure").press("Enter")
    page.get_by_text("nats a token").wait_for()
    page.get_by_label("Share of the second model").press("Home")
    assert "0 of third" in page.locator("#at-share").text_content()
    shoot(page, f"merge-measured-{theme}")
    check_axe(page)
    page.get_by_role("link", name="Make this merge").press("Enter")
    page.get_by_label("Recipe", exact=True).wait_for()
    estimate = page.get_by_role("button", name="Estimate")
    page.locator("#check:enabled").wait_for()  # its script has come
    estimate.press("Enter")
    page.get_by_text("It fits this machine.").wait_for()
    shoot(page, f"make-estimated-{theme}")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_picture_is_looked_at(open_page, console, tmp_path, theme):
    from PIL import Image

    Image.effect_noise((160, 120), 60).save(tmp_path / "noise.png")
    page = open_page(console, "/forensics", theme=theme, bypass=True)
    page.get_by_label("Drop a file here").set_input_files(tmp_path / "noise.png")
    page.locator(".looked .verdict").wait_for()
    assert "not a sign of a forgery" in page.locator(".looked").first.text_content()
    shoot(page, f"forensics-looked-{theme}")
    check_axe(page)


def test_the_key_is_asked_for(chromium, console):
    page = chromium.new_page()
    page.set_default_timeout(WAIT_MS)
    page.goto(f"{console[0]}/ask")
    page.get_by_label("Key").fill(console[1])
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Ask", exact=True).wait_for()
    page.context.close()


def test_the_theme_is_switched_and_kept(open_page, console):
    page = open_page(console, "/ask")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").select_option("dark")
    page.goto(f"{console[0]}/models")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before


def test_the_settings_of_an_answer_that_were_changed_are_sent(open_page, console):
    page = open_page(console, "/ask")
    page.locator("summary", has_text="Settings").click()
    page.get_by_label("Passages shown to the model").fill("2")
    page.get_by_label("Unsupported sentences").select_option("drop")
    page.locator("#best_at_ends").check()
    page.get_by_label("Question").fill("Where does the river rise?")
    with page.expect_request("**/v1/chat/completions*") as sent:
        page.locator("#send").click()
    body = sent.value.post_data_json
    given = {key: body[key] for key in body.keys() - {"model", "messages", "max_tokens", "stream"}}
    assert given == {"k": 2, "unsupported": "drop", "best_at_ends": True}
    page.locator(".answer:not([aria-busy])").wait_for(state="attached")


def test_the_menu_opens_and_closes_by_keyboard_on_a_phone(open_page, console):
    page = open_page(console, "/ask", size="phone")
    page.locator(".menu summary").focus()
    page.keyboard.press("Enter")
    page.locator(".menu").get_by_role("link", name="Records").wait_for()
    page.keyboard.press("Escape")
    assert not page.locator(".menu").evaluate("menu => menu.open")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"


def test_the_first_key_skips_to_the_page(open_page, console):
    page = open_page(console, "/records?at=records")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the page"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_hostile_texts_run_nothing(open_page, console):
    page = open_page(console, "/records?at=records")
    asked = []
    page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    assert page.locator(".entry script, .entry img").count() == 0
    page.goto(f"{console[0]}/lineage?at=run/steps/index")
    page.locator("a.to-source").first.click()
    page.locator("#source-inside mark").wait_for()
    assert page.locator("#source-inside script, #source-inside img").count() == 0
    assert not asked


def test_records_are_decided_by_keyboard(open_page, console):
    page = open_page(console, "/records?at=records")
    key = page.locator(".entry").nth(1).get_attribute("id")
    page.locator("body").click(position={"x": 600, "y": 10})
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.id") == key
    page.keyboard.press("r")
    page.locator(f"#{key}.reject").wait_for()
    page.wait_for_function("key => document.activeElement.id === key", arg=key)
    page.keyboard.press("e")
    page.keyboard.press("End")
    page.keyboard.type(" Said by hand.")
    page.locator(f"#{key} .edit button").focus()
    page.keyboard.press("Enter")
    page.locator(f"#{key}.edit").get_by_text("Said by hand.").first.wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_an_answer_is_judged_by_keyboard(open_page, console, judgments, theme):
    page = open_page(console, "/ask", theme=theme, bypass=True)
    page.get_by_label("Question").fill("Where does the river rise?")
    page.get_by_label("Question").press("Enter")
    verdicts = page.get_by_role("group", name="Judge this answer")
    verdicts.get_by_role("button", name="This sentence").press("Enter")
    shoot(page, f"ask-picking-{theme}")
    check_axe(page)
    page.get_by_role("button", name="It ends in the sea.").press("Enter")
    page.get_by_text("“It ends in the sea.” answers").wait_for()
    page.get_by_label("Question").fill("where does the river rise")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("judged by a person on 20").wait_for()
    assert page.locator("article q").last.text_content() == "It ends in the sea."
    shoot(page, f"ask-as-judged-{theme}")
    verdicts = page.get_by_role("group", name="Judge this answer").first
    pressed = verdicts.get_by_role("button", pressed=True)
    assert pressed.text_content() == "This sentence…"
    verdicts.get_by_role("button", name="Wrong").press("Enter")
    page.get_by_text(": Wrong").wait_for()
    shoot(page, f"ask-judged-{theme}")
    check_axe(page)
    assert list(judgments.glob("t*.jsonl"))


def test_after_wrong_the_sentence_that_answers_is_chosen(open_page, console, judgments):
    page = open_page(console, "/ask")
    page.get_by_label("Question").fill("Where does the river rise?")
    page.get_by_label("Question").press("Enter")
    page.get_by_role("button", name="Wrong").click()
    page.get_by_text("If a sentence answers, choose it.").wait_for()
    page.get_by_role("button", name="It ends in the sea.").click()
    page.get_by_text("“It ends in the sea.” answers").wait_for()
    assert list(judgments.glob("t*.jsonl"))


def test_a_quote_is_shown_whole_beside_the_answer_and_marked_in_its_source(open_page, console):
    page = open_page(console, "/ask")
    page.get_by_label("Question").fill("Where does the river rise?")
    page.get_by_label("Question").press("Enter")
    page.get_by_role("button", name="Right").wait_for()
    quotes = page.locator("article q").all_text_contents()
    page.locator(".passage .text.quoted mark").first.wait_for()
    cited = page.locator("a.cite").count()
    assert 1 <= cited <= len(quotes)
    said = page.locator(".under").first.text_content()
    assert said.startswith(f"{cited} citation{'s' * (cited > 1)}")
    page.locator("a.cite").first.click()
    page.locator("#source-inside mark").first.wait_for()
    marked = page.locator("#source-inside mark").all_text_contents()
    assert marked == quotes[: len(marked)]
    assert cited > 1 or len(marked) == len(quotes)


def test_wrapped_lines_of_a_quote_are_shown_joined(open_page, console):
    text = "It grinds barley for the brewers of the whole valley, who\n  bring it by boat."
    quote = {"number": 1, "text": text, "start": 0, "end": len(text), "answer_start": 0,
             "byte_start": 0, "byte_end": len(text), "headings": [], "pages": [],
             "short": "who\n  bring it", "short_start": 54, "short_end": 70,
             "soft_breaks": find_soft_breaks(text)}  # fmt: skip
    cited = {"number": 1, "passage_id": "pas-1", "path": "mills.txt"}
    told = {"citations": [cited], "answer": {"quotes": [quote], "answering": "quote"}}
    deltas = [{"content": f"{text} [1]"}, told]
    events = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    page = open_page(console, "/ask")
    page.route(
        "**/v1/chat/completions*",
        lambda route: route.fulfill(body=body, content_type="text/event-stream"),
    )
    page.get_by_label("Question").fill("Who brings the barley?")
    page.get_by_label("Question").press("Enter")
    page.locator("article q").wait_for()
    joined = "It grinds barley for the brewers of the whole valley, who bring it by boat."
    assert page.locator("article q").text_content() == joined
    assert page.locator("article q mark").text_content() == "who bring it"


def test_the_words_of_an_answer_are_found(open_page, console):
    page = open_page(console, "/ask")
    page.get_by_label("Question").fill("Where does the river rise?")
    page.get_by_label("Question").press("Enter")
    page.get_by_role("button", name="Find its words").click()
    stands = page.get_by_label("Where its words stand")
    stands.wait_for()
    assert "rivers.txt: bytes 0–48" in stands.text_content()
    assert "verbatim in documents" in page.locator(".exchange").text_content()
    shoot(page, "ask-traced")
