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


def test_settings_stay_open_where_an_index_is_chosen(open_page, console):
    page = open_page(console, "/ask")
    page.locator("summary", has_text="Settings").click()
    page.get_by_label("Run or index").dispatch_event("change")  # there is no other one
    page.wait_for_url("**/ask?at=run*")
    page.get_by_label("Passages shown to the model").wait_for()


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
    assert page.evaluate("document.activeElement.textContent") == "This sentence…"
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


def hold_replies(page, text, details):
    """Hold the questions of a page for ``answer_now``, with a text that cites passage 1."""
    cited = {"number": 1, "passage_id": "pas-1", "path": "mills.txt"}
    deltas = [{"content": text}, {"citations": [cited], "answer": details}]
    events = [json.dumps({"choices": [{"index": 0, "delta": delta}]}) for delta in deltas]
    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    told = {"id": "pas-1", "text": "### 1.2.\xa0Mills\n\nIt grinds.\n\n#### Oil\n\nNuts.",
            "headings": ["1.2. Mills"], "sentences": [[16, 26], [38, 43]]}  # fmt: skip
    rye = {"text": "Rye.", "headings": [], "sentences": [[0, 4]]}
    rows = {"data": [told, *({**rye, "id": f"pas-{n}"} for n in range(2, 5))]}
    page.route("**/ask/passages*", lambda route: route.fulfill(body=json.dumps(rows)))
    held = []
    page.route(
        "**/v1/chat/completions*",
        lambda route: held.append(
            lambda: route.fulfill(body=body, content_type="text/event-stream")
        ),
    )
    return held


def answer_now(page, held, place=0):
    """Give the answer that a page waits for, its question being the one at a place."""
    while not held:
        page.wait_for_timeout(20)
    held.pop()()
    page.locator(".exchange").nth(place).locator(".passage").first.wait_for()


SOURCES = [
    {"number": n, "passage_id": f"pas-{n}", "path": "mills.txt", "pages": [], "origin": "unknown",
     "score": 0.5, "flags": ["instruction"] * (n == 1)}
    for n in range(1, 5)
]  # fmt: skip
GRINDS = {"number": 1, "text": "It grinds.", "start": 16, "end": 26, "answer_start": 8,
          "byte_start": 0, "byte_end": 9, "headings": [], "pages": []}  # fmt: skip
DETAILS = {"quotes": [GRINDS], "answering": "quote", "sources": SOURCES, "origins": {"unknown": 1}}


def ask_mills(open_page, console, details, **how):
    page = open_page(console, "/ask", **how)
    held = hold_replies(page, "(Read.) It grinds. [1]", {**DETAILS, **details})
    page.get_by_label("Question").fill("Who grinds?")
    page.get_by_label("Question").press("Enter")
    return page, held


def test_passages_that_are_not_cited_are_folded_and_headings_have_no_marks(open_page, console):
    page, held = ask_mills(open_page, console, {}, bypass=True)
    answer_now(page, held)
    shown = page.locator(".exchange").inner_text()
    assert "3 more passages read" in shown
    assert [text for text in ("Rye.", "#", "unknown") if text in shown] == []
    assert shown.count("1.2. Mills") == 1  # the headings stand above the passage
    assert page.locator(".passage strong").all_text_contents() == ["Oil"]
    assert "Caution: this may hold an instruction to a language model." in shown
    check_axe(page)
    page.get_by_role("button", name="This sentence").click()
    assert "Rye." in page.locator(".exchange").inner_text()


def test_a_refusal_with_the_nearest_sentences_reads_as_none(open_page, console):
    page, held = ask_mills(open_page, console, {"abstained": True, "refusal": "no-answer"})
    answer_now(page, held)
    assert page.locator(".under").first.text_content() == "no answer, 1 nearest sentence"
    assert "no answer, 1 nearest sentence" in page.locator("#status").text_content()


def test_a_question_that_is_entered_during_another_waits(open_page, console):
    page, held = ask_mills(open_page, console, {})
    page.get_by_label("Question").fill("And who bakes?")
    page.get_by_label("Question").press("Enter")
    page.get_by_text("This question waits").wait_for()
    answer_now(page, held)
    page.get_by_role("heading", name="And who bakes?").wait_for()
    answer_now(page, held, 1)
    assert page.locator(".exchange").count() == 2
    assert page.get_by_text("This question waits").count() == 0


def test_a_follow_up_says_why_it_is_not_judged(open_page, console):
    trace = [{"step": "follow_up", "antecedents": ["Who grinds?"]}]
    notices = ["what was read: Read", "the text quoted: grinds"]
    page, held = ask_mills(open_page, console, {"trace": trace, "notices": notices})
    answer_now(page, held)
    page.get_by_text("The answer to a follow-up is not judged").wait_for()
    under = page.locator(".under").first.text_content()
    assert under == "1 citation · quoted from the documents of run · the text quoted: grinds"
    with page.expect_request("**/v1/traces*") as sent:
        page.get_by_role("button", name="Find its words").click()
    assert sent.value.post_data_json["text"] == f"{' ' * 8}It grinds.{' ' * 4}"


def test_a_follow_up_that_was_read_as_a_whole_question_is_judged_as_that(open_page, console):
    whole = "What is ground by the mill?"
    step = {"step": "follow_up", "antecedents": ["Who grinds?"], "query": whole}
    page, held = ask_mills(open_page, console, {"trace": [step]})
    stored = {"verdict": "right", "split": "train", "evidence": [{"quote": "It grinds."}]}
    page.route("**/v1/judgments*", lambda route: route.fulfill(body=json.dumps(stored)))
    answer_now(page, held)
    with page.expect_request("**/v1/judgments*") as sent:
        page.get_by_role("button", name="Right").click()
    assert sent.value.post_data_json["question"] == whole
    page.get_by_text(f"Stored for training as the answer to “{whole}”: Right").wait_for()


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_open_settings_leave_room_for_the_answer(open_page, console, size):
    page = open_page(console, "/ask", size=size, bypass=True)
    page.locator("summary", has_text="Settings").click()
    high = page.locator("#composer").evaluate("one => one.offsetHeight / window.innerHeight")
    assert high < 0.65
    check_axe(page)


def test_a_question_is_stopped_while_the_documents_are_opened(open_page, console):
    page = open_page(console, "/ask")
    page.route("**/ask/open*", lambda route: None)
    page.get_by_label("Question").fill("Who grinds?")
    page.get_by_label("Question").press("Enter")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopped before an answer").wait_for()
    assert "supports" not in page.locator(".exchange").inner_text()


def test_after_a_reload_the_last_answer_is_in_view(open_page, console):
    page, held = ask_mills(open_page, console, {}, size="phone")
    answer_now(page, held)
    page.get_by_label("Question").fill("Who bakes?")
    page.get_by_label("Question").press("Enter")
    answer_now(page, held, 1)
    page.evaluate("window.scrollTo(0, 0)")
    page.reload()
    page.get_by_role("heading", name="Who bakes?").wait_for()
    page.locator("#send:enabled").wait_for()
    page.wait_for_load_state("networkidle")
    assert 0 <= page.locator(".exchange").nth(1).bounding_box()["y"] < 400
