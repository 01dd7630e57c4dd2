"""What is read of an answer: calculations, whether they hold, and its end; nothing is run."""

import pytest

from models.effort.answers import calculations, final_answer


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("<<3+4=7>>", [True]),
        ("<<3+4*2=11>> then <<11/2=5.5>>", [True, True]),
        ("<<7*2=15>>", [False]),
        ("so 1,200 - 200 = 1,000 left", [True]),
        ("3 x 60 = 180 meters", [True]),
        ("<<1/3=0.333>>", [True]),
        ("<<1/0=0>>", [False]),
        ("<<2**99999999=1>>", [False]),
        ("<<__import__('os').getpid()*0=0>>", [False]),
        ("no numbers", []),
    ],
)
def test_calculations_hold_as_arithmetic_says(text: str, holds: list[bool]) -> None:
    assert [each.holds for each in calculations(text)] == holds


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("He has 3.\nA: 18", "18"),
        ("work\n#### 1,234.50", "1234.5"),
        ("The answer is $-7 today, not 9", "-7"),
        ("five and 6 make 11", "11"),
        ("It is\n Blue  Sky ", "blue sky"),
        ("", ""),
    ],
)
def test_equal_answers_end_in_equal_text(text: str, final: str) -> None:
    assert final_answer(text) == final
