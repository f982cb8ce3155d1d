"""Ask the demo's run ten questions whose answers are known, and say which were answered rightly.

A question without an answer in the documents is answered rightly by silence. These are ten
questions written beside the text, not a test: the run's report has figures with intervals. The exit
status is 1 if fewer than half were answered rightly.
"""

import sys
import time
from pathlib import Path

from stillroom.evaluate.metrics.answers import contains_answer
from stillroom.evaluate.qa.questions import read_question_set
from stillroom.flow import open_run

QUESTIONS = Path(__file__).with_name("demo_questions.jsonl")


def main() -> None:
    """Ask the run given on the command line."""
    right, spent = 0, 0.0
    questions = read_question_set(QUESTIONS)
    with open_run(Path(sys.argv[1])) as run:
        for question in questions:
            begun = time.process_time()
            *_, answer = run.ask(question.text)
            spent += time.process_time() - begun
            is_silent, text = answer.details["abstained"], " ".join(answer.completion.text.split())
            is_right = (
                not is_silent and bool(contains_answer(text, question.answers))
                if question.is_answerable
                else is_silent
            )
            right += is_right
            print(f"{'right' if is_right else 'wrong'}  {question.text}\n       {text}")
    print(f"{right} of {len(questions)} answered rightly, {spent / len(questions):.2f} CPU s each")
    sys.exit(2 * right < len(questions))


if __name__ == "__main__":
    main()
