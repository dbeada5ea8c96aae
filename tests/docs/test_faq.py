"""The messages in docs/faq.md are those of the code."""

import ast
import re

import pytest

from tiny_model import CHECKOUT

FAQ = (CHECKOUT / "docs" / "faq.md").read_text()
MESSAGES = re.findall(r"^\| `([^`]+)` \|", FAQ, re.MULTILINE)


def text_of(node):
    """The text of a string, with a line break where an f-string has a value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "\n"


@pytest.fixture(scope="module")
def texts():
    """All strings of the package and the tools but docstrings."""
    files = [*CHECKOUT.glob("projects/SGR/sgr/**/*.py"), *CHECKOUT.glob("tools/*.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    strings = (node for node in nodes if isinstance(node, (ast.JoinedStr, ast.Constant)))
    return {text_of(node) for node in strings if id(node) not in docstrings}


def test_there_are_messages():
    assert len(MESSAGES) > 40 and len(set(MESSAGES)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_has_the_message(texts, message):
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    pattern = re.compile(r".*".join(parts), re.DOTALL)
    assert any(map(pattern.search, texts))
