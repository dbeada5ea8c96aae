"""The program in the README runs."""

import contextlib
import io
import re
import sys
import textwrap
from pathlib import Path

from protoseg import classifier

PROJECT = Path(__file__).resolve().parents[1]


def test_the_program_that_measures_the_classifier(monkeypatch):
    """On few cells; it prints the memory and the time of both versions."""
    monkeypatch.syspath_prepend(PROJECT.parents[1] / "tools")
    monkeypatch.setattr(classifier, "MAX_COSINES", classifier.MAX_COSINES)  # the program sets it
    text = (PROJECT / "README.md").read_text()
    (program,) = re.findall(r"python - <<'END'\n(.*?)\n *END\n", text, re.DOTALL)
    program = textwrap.dedent(program)
    for full, small in (("128, 128", "8, 8"), ("=150", "=5"), ("(150,", "(5,")):
        assert full in program
        program = program.replace(full, small)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(program, "README.md", "exec"), {"__name__": "__main__"})
    expected = r"\(.*\) \[[0-9.e-]+, [0-9.e-]+\]\n"
    assert re.fullmatch(expected, output.getvalue())
    assert "benchmarks.measure" in sys.modules
