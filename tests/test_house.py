"The part of the house style that a machine can see."
import ast
import json
import re
from pathlib import Path

import pytest
from literate import Project

PROJECT = Project(Path(__file__).parent.parent)
EXPORT_LINES, CELLS, FIGURE_KB = 60, 80, 200


def each(notebooks): return pytest.mark.parametrize("nb", [pytest.param(nb, id=str(nb.path)) for nb in notebooks])


@each(PROJECT.notebooks)
def test_size(nb):
    assert len(nb.cells) <= CELLS, f"{len(nb.cells)} cells: two ideas, two notebooks"
    for i, cell in enumerate(nb.cells):
        lines = len([line for line in cell.source.splitlines() if line.strip() and not line.startswith("#|")])
        assert not cell.exported or lines <= EXPORT_LINES, f"cell {i} exports {lines} lines: build it from smaller parts"
        for output in cell.outputs:
            size = len(json.dumps(output)) / 1000
            assert size <= FIGURE_KB, f"an output of cell {i} has {size:.0f} kB: draw it smaller, or at a lower dpi"


@each(PROJECT.notebooks)
def test_cells(nb):
    assert nb.cells and all(cell.source.strip() for cell in nb.cells), "empty cells"
    for i, cell in enumerate(nb.cells):
        errors = [o for o in cell.outputs if o["output_type"] == "error"]
        assert not errors, f"cell {i} shows a traceback: catch the error that it teaches"
        shown = json.dumps([o.get("text") or o.get("data", {}).get("text/plain") for o in cell.outputs])
        assert not re.search(r"/site-packages/|/home/|/root/|/tmp/", shown), f"cell {i} shows a path of the machine that it ran on"


@each(PROJECT.numbered)
def test_opening(nb):
    first = nb.cells[0]
    assert first.kind == "markdown" and re.match(r"# \S.*\n+> \S", first.source), "begins with `# Name` and `> one-line promise`"
    assert re.fullmatch(r"# [^\n]+\n+> [^\n]+", first.source.strip()), "nbdev's pages lose what else the first cell says: give it a cell of its own"
    opening = next((c for c in nb.cells[1:] if c.kind == "code"), first)
    assert "default_exp" in opening.directives and opening in nb.cells[1:3], "`#| default_exp` comes next, after the reason why at most"
    prose = "\n".join(re.sub(r"^```.*?^```", "", c.source, flags=re.M | re.S) for c in nb.cells if c.kind == "markdown")
    assert len(re.findall(r"^# ", prose, re.M)) == 1, "one title"


@each(PROJECT.notebooks)
def test_imports_stand_alone(nb):
    for i, cell in enumerate(nb.cells):
        if cell.kind != "code": continue
        try: kinds = [type(node) for node in ast.parse(cell.code).body]
        except SyntaxError: continue
        others = [kind.__name__ for kind in kinds if kind not in (ast.Import, ast.ImportFrom, ast.If, ast.Try)]
        alone = not others or not {ast.Import, ast.ImportFrom} & set(kinds)
        assert alone, f"cell {i} mixes imports with {others[0]}: nbdev executes such a cell when it makes the docs"


@each(PROJECT.numbered)
def test_outputs_are_committed(nb): assert any(cell.outputs for cell in nb.cells), "no outputs: run `make notebooks NB=...`"
