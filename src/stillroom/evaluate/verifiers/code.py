"""Code verifier: the program passes its unit tests or input/output cases in a sandbox.

Source: Chen et al. 2021, arXiv:2107.03374, section 2.3 (sandboxed execution of generated code).
Differs: processes with namespaces, Landlock and seccomp instead of gVisor; tests run in another
process than the program, which cannot forge a pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.evaluate.interfaces import VerificationResult, Verifier
from stillroom.evaluate.sandbox import run_code, run_tests

__all__ = ["Code"]

_BLOCK = re.compile(
    r"(?:^|(?<=[ \t]))```[ \t]*([\w+-]{0,20})[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE
)
_PYTHON = frozenset({"python", "python3", "py"})


class Code(Verifier):
    """Runs Python: field ``tests`` has assertions, or ``cases`` pairs of input and output."""

    paper: ClassVar[str] = "arXiv:2107.03374"
    needs: ClassVar[tuple[str, ...]] = ("tests", "cases")

    timeout_s: float = Field(5.0, gt=0, le=60, description="maximum seconds of a run")
    memory_mb: int = Field(512, ge=64, le=8192, description="maximum memory of a run in megabytes")

    @override
    def check(self, text: str, fields: Mapping[str, Any]) -> VerificationResult:
        code = _find_code(text)
        if not code:
            return VerificationResult(False, "no code", 0.0)
        tests, cases = _read_tests(fields), _read_cases(fields)
        if not tests and not cases:
            return VerificationResult(False, "no tests to run", 0.0)
        memory = self.memory_mb * 2**20
        if tests:
            outcome = run_tests(code, tests, timeout_s=self.timeout_s, memory_bytes=memory)
            if not outcome.is_done:
                return VerificationResult(False, f"fails its tests: {outcome.reason}", 0.0)
        for passed, (case_input, case_output) in enumerate(cases):
            outcome = run_code(
                [code], stdin=case_input, timeout_s=self.timeout_s, memory_bytes=memory
            )
            if not outcome.is_done:
                return VerificationResult(
                    False, f"fails a case: {outcome.reason}", passed / len(cases)
                )
            if outcome.output.split() != case_output.split():
                return VerificationResult(False, "prints something else", passed / len(cases))
        return VerificationResult(True)


def _find_code(text: str) -> str:
    """Return the last block of Python, else the last without a language, else the whole text."""
    blocks = [(language.casefold(), code) for language, code in _BLOCK.findall(text)]
    python = [code for language, code in blocks if language in _PYTHON]
    plain = [code for language, code in blocks if not language]
    return str((python or plain or [text])[-1]).strip()


def _read_tests(fields: Mapping[str, Any]) -> list[str]:
    tests = fields.get("tests") or ()
    if isinstance(tests, str):
        return [tests]
    return [str(test) for test in tests] if isinstance(tests, Sequence) else []


def _read_cases(fields: Mapping[str, Any]) -> list[tuple[str, str]]:
    cases = fields.get("cases") or ()
    if not isinstance(cases, Sequence) or isinstance(cases, str):
        return []
    return [
        (str(case.get("input", "")), str(case.get("output", "")))
        for case in cases
        if isinstance(case, Mapping)
    ]
