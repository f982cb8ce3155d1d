"""Programs that are right pass their tests from another process; tests that prove nothing do not.

Attacks are in tests/attacks/test_sandbox.py.
"""

import pytest

from stillroom.evaluate.sandbox import run_tests

POINT = """
from dataclasses import dataclass
@dataclass
class Point:
    x: int
    y: int = 0
    def __add__(self, other): return Point(self.x + other.x, self.y + other.y)
    def __mul__(self, k): return Point(self.x * k, self.y * k)
    def __lt__(self, other): return self.x < other.x
"""
STACK = """
class Empty(LookupError):
    def __init__(self, size):
        super().__init__(f"empty at {size}")
        self.size = size
class VeryEmpty(Empty): pass
class Stack:
    limit = 3
    def __init__(self, items=()): self.items = list(items)
    def push(self, item): self.items.append(item)
    def pop(self):
        if not self.items: raise VeryEmpty(0)
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, at): return self.items[at]
    def __setitem__(self, at, item): self.items[at] = item
    def __enter__(self): return self
    def __exit__(self, *told): self.items.clear()
    def __iadd__(self, item):
        self.push(item)
        return self
"""
NODE = "class Node:\n    def __init__(self, v, next=None):\n        self.v, self.next = v, next\n"

# What a right program does, and tests of it as people write them.
RIGHT = {
    "its own start": (
        "def f(x): return x + 1\nif __name__ == '__main__':\n    print(f(int(input())))",
        "assert f(1) == 2",
    ),
    "typed as text": (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from typing import ClassVar\n"
        "@dataclass\nclass P:\n    n: ClassVar[int] = 1\n    x: int = 2",
        "assert P().x == 2 and P.n == 1",
    ),
    "values": (
        "def same(x): return x",
        "for x in (None, True, 0, -1, 2 ** 70, 1.5, 'a\\ud800', b'a', 1j, (1, [2]), {1, 2}, {},\n"
        "          {(1, 2): [3]}, frozenset({1}), range(3), bytearray(b'x'), float('inf')):\n"
        "    assert same(x) == x and type(same(x)) is type(x)\n"
        "assert str(same(float('nan'))) == 'nan'\nassert same(10 ** 5000) == 10 ** 5000",
    ),
    "values of the library": (
        "import collections, datetime, decimal, fractions\n"
        "def make(): return [collections.Counter('aab'), collections.deque([1], 3),\n"
        "    collections.OrderedDict(a=1), decimal.Decimal('0.10'), fractions.Fraction(1, 3),\n"
        "    datetime.date(2020, 2, 29), datetime.timedelta(1, 2, 3), "
        "datetime.datetime(2020, 1, 2, 3)]\n"
        "def group(xs):\n    d = collections.defaultdict(list)\n"
        "    for x in xs: d[x % 2].append(x)\n    return d\n"
        "Pair = collections.namedtuple('Pair', 'a b')\ndef pair(): return Pair(1, 2)",
        "import datetime, decimal, fractions\nfrom collections import Counter, OrderedDict, deque\n"
        "assert make() == [Counter(a=2, b=1), deque([1]), OrderedDict(a=1), "
        "decimal.Decimal('0.1'), fractions.Fraction(1, 3), datetime.date(2020, 2, 29), "
        "datetime.timedelta(1, 2, 3), datetime.datetime(2020, 1, 2, 3)]\n"
        "assert make()[1].maxlen == 3\nassert group([1, 2, 3]) == {1: [1, 3], 0: [2]}\n"
        "assert pair() == (1, 2) and pair().b == 2",
    ),
    "changes in place": (
        "def work(xs, d, s): xs.sort(); d['n'] = xs; s.add(1); del xs[0]; return xs",
        "xs, d, s = [3, 1, 2], {}, set()\ngot = work(xs, d, s)\n"
        "assert got is xs and xs == [2, 3] and d['n'] is xs and s == {1}",
    ),
    "changes within": (
        "def rotate(m):\n    m[:] = [list(r) for r in zip(*m[::-1])]\n"
        "def fill(m):\n    m[0][0] = 9",
        "m = [[1, 2], [3, 4]]\nrotate(m)\nassert m == [[3, 1], [4, 2]]\n"
        "row = m[0]\nfill(m)\nassert row == [9, 1]",
    ),
    "a list that holds itself": ("def f(x): return x", "a = []\na.append(a)\nassert f(a) is a"),
    "objects": (
        STACK,
        "s = Stack([1])\ns.push(2)\nassert len(s) == 2 and list(s) == [1, 2] and s[-1] == 2\n"
        "assert s.pop() == 2 and s.items == [1] and 1 in s and 5 not in s\ns[0] = 7\n"
        "assert s.pop() == 7 and not s and Stack.limit == 3 and isinstance(s, Stack)\n"
        "with s as t:\n    assert t is s\nassert len(s) == 0\n"
        "s.note = 'x'\nassert s.note == 'x' and hasattr(s, 'pop') and not hasattr(s, 'peek')\n"
        "assert Stack.__name__ == 'Stack' and not isinstance(3, Stack)\n"
        "s += 4\nassert s.items == [4]",
    ),
    "objects compared with each other": (
        POINT,
        "assert Point(1, 2) + Point(3, 4) == Point(4, 6) != Point(4, 7)\n"
        "assert Point(1, 2) * 3 == Point(3, 6) and (Point(1, 2) * 3).y == 6\n"
        "assert max([Point(1), Point(3), Point(2)]).x == 3 and str(Point(1)) == 'Point(x=1, y=0)'\n"
        "assert [p.x for p in sorted([Point(2), Point(1)])] == [1, 2] and Point(1) is not None",
    ),
    "an enumeration": (
        "from enum import Enum\nclass Color(Enum):\n    RED = 1\n    BLUE = 2\n"
        "def warm(): return Color.RED",
        "assert warm() is Color.RED and warm() == Color.RED != Color.BLUE\n"
        "assert warm().name == 'RED' and Color(2) is Color.BLUE",
    ),
    "exceptions": (
        STACK + "def bad(n):\n    raise ValueError('no', n)\ndef missing(): return {}['k']",
        "import json\ntry:\n    bad(3)\n    assert False\nexcept ValueError as e:\n"
        "    assert e.args == ('no', 3)\n"
        "try:\n    missing()\n    assert False\n"
        "except KeyError as e:\n    assert e.args[0] == 'k'\n"
        "for kind in (VeryEmpty, Empty, LookupError):\n    try:\n        Stack().pop()\n"
        "        assert False\n    except kind as e:\n"
        "        assert str(e) == 'empty at 0' and (kind is LookupError or e.size == 0)",
    ),
    "an exception of the library": (
        "import json\ndef read(t): return json.loads(t)",
        "import json\ntry:\n    read('{')\n    assert False\n"
        "except json.JSONDecodeError:\n    pass",
    ),
    "functions handed over": (
        "from functools import reduce\ndef apply(f, *xs): return reduce(f, xs)\n"
        "def each(f, xs): return [f(x) for x in xs]\n"
        "def twice(f):\n    def g(*a): return f(f(*a))\n    return g\n"
        "def order(xs, key): return sorted(xs, key=key)",
        "import operator\nassert apply(lambda a, b: a * b, 2, 3, 4) == 24\n"
        "assert apply(operator.add, 1, 2) == 3 and apply(max, 1, 5, 2) == 5\n"
        "seen = []\neach(seen.append, [1, 2])\nassert seen == [1, 2]\n"
        "assert order(['B', 'a'], str.lower) == ['a', 'B'] and order([2, -3], abs) == [2, -3]\n"
        "@twice\ndef inc(n): return n + 1\nassert inc(1) == 3\n"
        "class Own(KeyError): pass\ndef fails(n): raise Own(n)\n"
        "try:\n    each(fails, [1])\n    assert False\nexcept KeyError:\n    pass",
    ),
    "with statements": (
        "from contextlib import contextmanager\nlog = []\n@contextmanager\ndef cm():\n"
        "    log.append(1)\n    try:\n        yield 5\n    except KeyError as e:\n"
        "        log.append(e.args[0])\n    finally:\n        log.append(2)",
        "with cm() as x:\n    assert x == 5\nassert log == [1, 2]\n"
        "with cm():\n    raise KeyError('k')\nassert log[2:] == [1, 'k', 2]\n"
        "try:\n    with cm():\n        1 / 0\n    assert False\n"
        "except ZeroDivisionError:\n    pass",
    ),
    "classes": (
        "class A:\n    def hi(self): return 'a'\nclass B(A):\n    @property\n"
        "    def p(self): return super().hi() + 'b'\n    @staticmethod\n    def s(n): return n\n"
        "    @classmethod\n    def make(cls): return cls()",
        "assert B().p == 'ab' and isinstance(B(), A) and issubclass(B, A)\n"
        "assert not issubclass(A, B) and B.s(3) == 3 and B.make().hi() == 'a'",
    ),
    "a class of its own under a name of Python's": (
        "class deque(list):\n    def popleft(self): return self.pop(0)",
        "d = deque([1, 2])\nassert d.popleft() == 1 and list(d) == [2]",
    ),
    "a mock": (
        "def call(f): return f(2) + 1",
        "from unittest.mock import Mock\nm = Mock(return_value=4)\nassert call(m) == 5\n"
        "m.assert_called_once_with(2)",
    ),
    "iterators both ways": (
        "def squares(n):\n    for i in range(n):\n        yield i * i\n"
        "def take(n, xs): return [x for _, x in zip(range(n), xs)]\n"
        "def count():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        "assert list(squares(4)) == [0, 1, 4, 9]\nimport itertools\n"
        "assert list(itertools.islice(count(), 3)) == [0, 1, 2]\n"
        "assert take(2, (i for i in [5, 6, 7])) == [5, 6]\ng = squares(1)\nnext(g)\n"
        "try:\n    next(g)\n    assert False\nexcept StopIteration:\n    pass",
    ),
    "objects of the tests": (
        "def total(node):\n    n = 0\n    while node:\n        n += node.v\n"
        "        node = node.next\n"
        "    return n\n"
        "def reverse(node):\n    last = None\n    while node:\n"
        "        node.next, last, node = last, node, node.next\n    return last",
        NODE + "head = Node(1, Node(2, Node(3)))\nassert total(head) == 6\nend = reverse(head)\n"
        "assert end.v == 3 and end.next.v == 2 and head.next is None",
    ),
    "objects of the program's class": (
        NODE + "def total(n):\n    return n.v + total(n.next) if n else 0",
        "n = Node(1, Node(2))\nassert total(n) == 3 and n.next.v == 2 and n.next.next is None",
    ),
    "state": (
        "count = 0\ndef bump():\n    global count\n    count += 1\n"
        "def memo(n, seen={}):\n    seen[n] = n\n    return len(seen)",
        "bump()\nbump()\nassert count == 2 and memo(1) == 1 and memo(2) == 2",
    ),
    "what is printed": (
        "def hello(): print('hello')",
        "import io\nfrom contextlib import redirect_stdout\nout = io.StringIO()\n"
        "with redirect_stdout(out):\n    hello()\nassert out.getvalue() == 'hello\\n'",
    ),
    "modules that the program imported": (
        "import math\nimport itertools as it\nfrom collections import Counter\n"
        "def area(r): return math.pi * r * r",
        "assert math.isclose(area(2), 4 * math.pi)\nassert list(it.chain([1], [2])) == [1, 2]\n"
        "assert Counter('aa') == {'a': 2}",
    ),
    "a test case": (
        "def inc(n): return n + 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test_inc(self):\n"
        "        self.assertEqual(inc(1), 2)\n        with self.assertRaises(TypeError):\n"
        "            inc('x')",
    ),
    "functions for a test runner": (
        "def inc(n): return n + 1",
        "def test_inc():\n    assert inc(1) == 2",
    ),
    "helpers that are named as tests are": (
        "class S:\n    n = 2\n    def f(self): return 2",
        "s = S()\ndef test_same(a, b):\n    assert a == b\n"
        "def test_once(seen=[]):\n    seen.append(1)\n    assert len(seen) == 1 and s.n == 2\n"
        "test_once()\ndef test_f():\n    test_same(s.f(), 2)",
    ),
    "a name of Python's alone": ("def sum(a, b): return a + b", "assert sum(1, 2) == 3"),
    "a stream of its own": (
        "import sys\nsys.stdout.reconfigure(encoding='utf-8')\ndef f():\n"
        "    sys.stdout.buffer.write('\u00e9'.encode())\n    print('x')",
        "import io\nfrom contextlib import redirect_stdout\nout = io.StringIO()\n"
        "with redirect_stdout(out):\n    f()\nassert out.getvalue() == '\u00e9x\\n'",
    ),
    "a closed stream": ("import sys\nsys.stdout.close()\ndef f(): return 1", "assert f() == 1"),
    "views of a dictionary": (
        "def f(d): return d.keys(), d.values(), d.items()\ndef g(v): return sorted(v)",
        "keys, values, items = f({1: [2]})\nassert keys == {1} and list(values) == [[2]]\n"
        "assert list(items) == [(1, [2])] and g({2: 1, 1: 2}.keys()) == [1, 2]",
    ),
    "what compares as a number or a text": (
        "from enum import Enum, IntEnum\nclass C(IntEnum):\n    A = 1\nclass D(str, Enum):\n"
        "    A = 'a'\nclass F(float): pass\ndef f(): return C.A\ndef g(): return F(.5)",
        "assert f() == 1 and 1 == f() and f() != 2 and f() in [1] and D.A == 'a'\n"
        "assert C.A is f() and g() == .5",
    ),
    "a file of tests": (
        "def inc(n): return n + 1",
        "import unittest\nclass T(unittest.TestCase):\n    def test_inc(self):\n"
        "        self.assertEqual(inc(1), 2)\nif __name__ == '__main__':\n    unittest.main()",
    ),
    "a plain class of tests": (
        "def inc(n): return n + 1",
        "class TestInc:\n    def setup_method(self):\n        self.n = 1\n"
        "    def test_inc(self):\n        assert inc(self.n) == 2",
    ),
    "a test that awaits": (
        "async def inc(n): return n + 1\ndef twice(n): return 2 * n",
        "async def two(): return 2\nasync def test_twice():\n    assert twice(await two()) == 4",
    ),
    "a check of a candidate": (
        "def inc(n): return n + 1",
        ["def check(candidate):\n    assert candidate(1) == 2", "check(inc)"],
    ),
    "text of the tests as code": (
        "def inc(n): return n + 1",
        "n = 4\nassert eval('inc(n)') == 5\nexec('assert inc(2) == 3')",
    ),
    "the library": (
        "import math, collections, itertools, re, json, dataclasses, typing, random, heapq\n"
        "import functools, decimal, threading\n@functools.lru_cache\ndef fib(n: int) -> int:\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "def smallest(xs: typing.List[int], k): return heapq.nsmallest(k, xs)\n"
        "def words(t): return re.findall(r'\\w+', t)\n"
        "def both(f):\n    out = []\n    ts = [threading.Thread(target=out.append, args=(i,)) "
        "for i in range(2)]\n    [t.start() for t in ts]\n    [t.join() for t in ts]\n"
        "    return sorted(out)\n",
        "assert fib(80) == 23416728348467685 and smallest([3, 1, 2], 2) == [1, 2]\n"
        "assert words('a b') == ['a', 'b'] and both(1) == [0, 1]\nassert fib.cache_info().hits > 5",
    ),
}

# Tests that say nothing of a program that is out of reach: told by name, and never passed.
UNPROVABLE = {
    "an object of the program judge itself": (
        "class Money:\n    def __init__(self, n): self.n = n\n"
        "    def __eq__(self, o): return o == self.n",
        ["assert Money(5) == 5", "assert 5 == Money(5)", "assert Money(5) in [5]"],
    ),
    "hand the program what cannot be handed": ("def f(x): return 1", ["import io; f(io)"]),
    "run text as code": (
        "def f(): return '1 + 1'",
        ["assert eval(f()) == 2", "import pickle\nassert pickle.loads(f())", "exec(f())"],
    ),
    "derive a class": ("class A: pass", ["class B(A): pass\nassert B()"]),
    "suppresses an exception": (
        "from contextlib import suppress\ndef cm(): return suppress(Exception)",
        ["with cm():\n    1 / 0"],
    ),
    "redefines a name": (
        "def sum(a, b): return a + b\ndef f(): return [1]\nN = 3",
        [
            "assert sum(1, 2) == 3 and f() == [1]",
            "assert f() == [sum(1, 0)]",
            "assert sum(1, 2) == N",
        ],
    ),
    "change a copy": (
        "class S:\n    def __init__(self): self.items, self.d = [], {}\nseen = []",
        [
            "s = S()\ns.items.append(1)\nassert s.items == [1]",
            "s = S()\ns.d['a'] = 1\nassert s.d == {'a': 1}",
            "seen.append(1)\nassert seen == [1]",
        ],
    ),
    "ask nothing": (
        "def f(): return 1",
        ["pass", "def check(f): assert f() == 1", "assert f", "f() == 2", "print(f())"],
    ),
    "are not valid Python": ("def f(): return 1", ["assert f( == 1"]),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_passes(name):
    program, tests = RIGHT[name]
    outcome = run_tests(program, [tests] if isinstance(tests, str) else tests, timeout_s=20)
    assert outcome.reason == ""


@pytest.mark.parametrize("name", UNPROVABLE)
def test_tests_that_prove_nothing_are_named(name):
    program, tests = UNPROVABLE[name]
    for test in tests:
        assert name in run_tests(program, [test]).reason


USES = "class S:\n    n = 3\n    def f(self, x): return 'wrong'"
CASE = "import unittest\nclass T(unittest.TestCase):\n    def test_f(self):\n"
DECLARED = {
    "a function": "s = S()\ndef test_f():\n    assert s.f(1) == 2",
    "two parts": ["s = S()\nassert s.n == 3", "def test_f():\n    assert s.f(1) == 2"],
    "a test case": f"n = S().f(0)\n{CASE}        self.assertEqual(S().f(1), 2)",
    "a test case that a runner ran": (
        f"n = S().n\n{CASE}        self.assertEqual(S().f(1), 2)\n"
        "import io\nunittest.TextTestRunner(io.StringIO()).run("
        "unittest.defaultTestLoader.loadTestsFromTestCase(T))"
    ),
    "a file": f"n = S().n\n{CASE}        assert S().f(1) == 2\nunittest.main(exit=False)",
    "a plain class": "n = S().n\nclass TestF:\n    def test_f(self):\n        assert S().f(1) == 2",
    "a function that awaits": "n = S().n\nasync def test_f():\n    assert S().f(1) == 2",
    "a function that yields": "n = S().n\ndef test_f():\n    yield\n    assert S().f(1) == 2",
}


@pytest.mark.parametrize("name", DECLARED)
def test_declared_tests_run_even_if_others_asked_something(name):
    tests = DECLARED[name]
    outcome = run_tests(USES, [tests] if isinstance(tests, str) else tests, timeout_s=20)
    assert outcome.reason == "AssertionError"
    right = USES.replace("'wrong'", "2")
    assert run_tests(right, [tests] if isinstance(tests, str) else tests, timeout_s=20).is_done


def test_no_exception_hides_what_happened():
    program = "import os\ndef f(n):\n    os._exit(0)"
    caught = "try:\n    f(1)\nexcept:\n    done = True\nassert done"
    assert run_tests(program, [caught]).reason == "ended early"
    program = "class M:\n    def __eq__(self, other): return True"
    assert "judge itself" in run_tests(program, ["try:\n    M() == 5\nexcept:\n    pass"]).reason


def test_the_time_of_either_process_is_bounded():
    program = "def f():\n    while True: pass"
    assert run_tests(program, ["f()"], timeout_s=0.5).reason == "out of time"
    assert run_tests("def f(): pass", ["while True: pass"], timeout_s=0.5).reason == "out of time"
