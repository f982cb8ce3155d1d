import pytest

from stillroom.evaluate.notation import find_unit, rewrite_notation
from stillroom.evaluate.verifiers.maths import Maths


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 5²", "25"),
        ("Answer: 3½", "3.5"),
        ("Answer: √2", r"\sqrt{2}"),
        ("Answer: ∞", r"\infty"),
        ("Answer: 1 1/2", r"\frac{3}{2}"),
        ("Answer: 1.234.567", "1234567"),
        ("Answer: 1.234,5", "1234.5"),
        ("Answer: minus 5", "-5"),
        ("<answer>42</answer>", "42"),
        (r"\boxed{0.1\overline{6}}", "1/6"),
        (r"\boxed{1\le x\le 2}", "[1,2]"),
        (r"\boxed{x=3, y=4}", "(3,4)"),
        (r"\boxed{f(3)=5}", "f(3)=5"),
        (r"\boxed{3 \text{ cm}^2}", "3"),
        ("The answer is 4. No, that is wrong.\nThe answer is 5.", "5"),
        ("The answer is 5. It should be noted that 5 is prime.", "5"),
        (r"\boxed{5}. The answer must be positive, so we are done.", "5"),
        ("\\boxed{5}\nThis is not correct for negative n, but n is positive.", "5"),
        ("<think>I write <answer></answer> tags.</think><answer>42</answer>", "42"),
        ("<answer>41</answer> No. <answer>42</answer>", "42"),
        ("The answer is B!", "B"),
        ("The answer is “42”.", "42"),
        ("Answer: 42 ✓", "42"),
        ("Answer: x ≈ 3.14", "3.14"),
        ("Answer: –5", "-5"),
        ("Answer: √(1+x²)", r"\sqrt{1+x^2}"),
        ("Answer: 3½ hours", "3.5"),
        ("Answer: £8", "8 pounds"),
        ("Answer: $8", "8 dollars"),
        ("Answer: 36 in²", r"36\text{ square inches}"),
        ("so the area is 1,000.99 m²", "1000.99"),
        ("Answer: 20 °C", r"20^\circ\text{C}"),
        (r"\boxed{12\pi\ \text{cubic centimeters}}", r"12\pi\text{ cm}^3"),
        (r"\boxed{f'(x)=2x}", "2x"),
        (r"\boxed{P(A')=0.3}", "0.3"),
        (r"\boxed{5}", "f(3)=5"),
        (r"\boxed{2y=x+1}", r"y=\frac{x+1}{2}"),
        (r"\boxed{\pm 3}", "3, -3"),
        (r"\boxed{(1,2),(3,4)}", r"\{(1,2),(3,4)\}"),
        (r"\boxed{\{(1,2)\}}", "(1,2)"),
        ("(5,2),(7,2)", "p=5,q=2;p=7,q=2"),
        (r"\boxed{\angle CBA}", r"\angle ABC"),
        (r"\boxed{A^{\top}}", "A^T"),
        (r"\boxed{\emptyset}", r"\varnothing"),
        (r"\boxed{\langle 1,2 \rangle}", "(1,2)"),
        (r"\boxed{1\,000\,000}", "10^6"),
        (r"The answer is \[\frac{3}{4}.\]", r"\frac34"),
    ],
)
def test_accepts_notations_of_one_value(text, answer):
    assert Maths().check(text, {"answer": answer}).keep


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 5²", "5"),
        ("Answer: 3½", "3"),
        ("Answer: ≤ 5", "5"),
        ("Answer: 5–7", "5"),
        ("Answer: 5..7", "5"),
        ("Answer: 5万", "5"),
        ("The answer is 5? No.", "5"),
        ("The answer is 5. No, that is wrong: it must be 6.", "5"),
        (r"\boxed{5}. Sorry, that is not right.", "5"),
        ("Answer: 5 pm", "5 am"),
        ("Answer: €5", r"\$5"),
        (r"\boxed{5\text{ cents}}", r"\$5"),
        (r"\boxed{2\text{ km}}", r"2\text{ m}"),
        (r"Answer: 5 \text{ m/s}", r"5 \text{ m/s}^2"),
        ("Answer: 50 mph", r"50 \text{ km/h}"),
        (r"\boxed{101_2}", "101_3"),
        (r"\boxed{|x|}", "x"),
        (r"\boxed{f'(x)}", "f(x)"),
        (r"\boxed{A^T}", "A"),
        (r"\boxed{\frac{dy}{dx}}", r"\frac{dx}{dy}"),
        (r"\boxed{f(3)=5}", "f(3)=6"),
        (r"\boxed{f(3)=5}", "f(5)=3"),
        (r"\boxed{(4,3)}", "x=3, y=4"),
        (r"\boxed{(1,2)}", r"\{1,2\}"),
        (r"\boxed{2x=6}", "6"),
        (r"\boxed{3:4:5}", "3:5:4"),
        (r"\boxed{12:30}", "2:05"),
        (r"\boxed{\Delta}", r"\delta"),
        (r"\boxed{\cos 30}", r"\cos 30^\circ"),
        (r"\boxed{\angle ABC}", r"\angle BCA"),
        (r"\boxed{\text{A and B}}", r"\text{A or B}"),
        (r"\boxed{x<1 \text{ and } x>2}", r"x<1 \text{ or } x>2"),
        (r"\boxed{\vec{a}\cdot\vec{b}}", r"\vec{a}\times\vec{b}"),
        (r"\boxed{A'}", "A"),
        ("The answer is 5. The answer should be $6$.", "5"),
        (r"\boxed{2y=3x}", "y=3x"),
        (r"\boxed{\pm 3}", "3"),
        (r"\boxed{\pi r^2 h}", r"\pi r^2"),
        (r"\boxed{5\text{ dozen}}", "5"),
        ("Answer: 20 °C", "20 °F"),
        ("Answer: £8", r"\$8"),
        ("Answer: 36 cm²", "36 cm"),
        (r"\boxed{\{(1,2)\}}", "(2,1)"),
        (r"\boxed{P(X=2)=0.3}", "P(X=3)=0.3"),
        ("Answer: 0,111", "111"),
    ],
)
def test_refuses_what_differs_in_symbols_only(text, answer):
    assert not Maths().check(text, {"answer": answer}).keep


def test_rewrites_what_people_type():
    assert rewrite_notation("x² − ½√3") == r"x^{2} - 1/2\sqrt{3}"
    assert rewrite_notation("αβγ, π") == r"αβγ, \pi"


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("3 square feet", (("foot", "2"),)),
        (r"5\,\mathrm{m/s}^2", (("meter", "1"), ("second", "2"))),
        ("5 miles per hour", (("mile", "1"), ("hour", "1"))),
        ("3 apples", None),
        ("3x", None),
    ],
)
def test_finds_units_of_measure(text, unit):
    assert find_unit(text) == unit
