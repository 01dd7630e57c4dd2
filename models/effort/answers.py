"""What an answer says in numbers: its calculations, whether they hold, and where it ends.

Nothing of an answer is run: an expression is parsed, and only + - * / on numbers is computed.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_SIGNED = re.compile(r"-?\$?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_MARKED = re.compile(r"<<([^<>=]{1,200})=([^<>=]{1,60})>>")
_PLAIN = re.compile(r"([\d.,()$][\d\s.,()+\-*/x$]{0,198})=\s*\$?(-?[\d,]*\.?\d+)")
_FINAL = re.compile(r"(?:####|\bA:|[Aa]nswer is:?)\s*(.*)")
_LEADING_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)")
_TOLERANCE = 1e-3  # answers round: 1/3 = 0.333
_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Calculation:
    """One `expression = result` of an answer.

    Attributes:
        numbers: of the expression, in order. operators: those of + - * / that it uses.
        result: as stated. holds: the expression has that value, within a thousandth.

    """

    numbers: tuple[float, ...]
    operators: frozenset[str]
    result: float
    holds: bool


def numbers(text: str) -> list[float]:
    """Return the numbers of a text in order, without signs."""
    return [float(found.replace(",", "")) for found in _NUMBER.findall(text)]


def same(left: float, right: float) -> bool:
    """Tell whether two numbers are equal within a thousandth, relative above 1."""
    return abs(left - right) <= _TOLERANCE * max(1.0, abs(left))


def calculations(text: str) -> list[Calculation]:
    """Return the calculations marked `<<a+b=c>>`, else those written `a + b = c`."""
    found = _MARKED.findall(text) or _PLAIN.findall(text)
    read = (_calculation(expression, result) for expression, result in found)
    return [each for each in read if each is not None]


def final_answer(text: str) -> str:
    """Return what an answer ends in, so that equal answers are equal strings.

    The number after the last `####`, `A:` or `answer is`, else the last number, else the last line
    in lower case; empty of an empty text.
    """
    marked = _FINAL.findall(text)
    found = _SIGNED.findall(marked[-1])[:1] if marked else _SIGNED.findall(text)[-1:]
    if found:
        return f"{_number(found[0]):.6g}"
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join((marked[-1] if marked else lines[-1]).lower().split()) if lines else ""


def _calculation(expression: str, result: str) -> Calculation | None:
    stated = _SIGNED.search(result)
    if stated is None:
        return None
    value = _number(stated.group())
    plain = expression.replace(",", "").replace("$", "").replace("x", "*")
    used = frozenset(each for each in "+-*/" if each in plain)
    computed = _value(plain)
    holds = computed is not None and same(computed, value)
    return Calculation(tuple(numbers(expression)), used, value, holds)


def _number(written: str) -> float:
    sign = -1 if "-" in written else 1
    return sign * float(re.sub(r"[,$-]", "", written))


def _value(expression: str) -> float | None:
    try:
        tree = ast.parse(_LEADING_ZEROS.sub("", expression.strip()), mode="eval")
        return _computed(tree.body)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None


def _computed(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_computed(node.left), _computed(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_computed(node.operand)
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    raise ValueError("not arithmetic")
