"The notebooks and modules of a project, read without running them: who imports whom, spelled in whatever way."
import ast
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

BUILD_ONLY = {"fastcore", "nbdev", "execnb"}
BY_STRING = {"import_module", "__import__", "resolve_name", "locate", "run_module", "find_spec", "importorskip"}
DIRECTIVE = re.compile(r"^#\|[ \t]*(\w+)[ \t]*(\S*)", re.M)


@dataclass
class Cell:
    kind: str
    source: str
    outputs: list = field(default_factory=list)

    @cached_property
    def directives(self) -> dict[str, str]: return dict(DIRECTIVE.findall(self.source))

    @property
    def exported(self) -> bool: return self.kind == "code" and bool({"export", "exports", "exporti"} & self.directives.keys())

    @cached_property
    def code(self) -> str:
        "The source as Python: without magics and shell lines."
        return "" if self.source.lstrip().startswith("%%") else re.sub(r"^([ \t]*)[%!].*$", r"\1pass", self.source, flags=re.M)


@dataclass
class Notebook:
    path: Path  # Relative to nbs/
    cells: list[Cell]

    @classmethod
    def read(cls, file: Path, nbs: Path) -> "Notebook":
        raw = json.loads(file.read_text(encoding="utf-8"))
        return cls(file.relative_to(nbs), [Cell(c["cell_type"], "".join(c["source"]), c.get("outputs", [])) for c in raw["cells"]])

    @property
    def number(self) -> int | None:
        found = re.match(r"(\d{3})_", self.path.name)
        return int(found[1]) if found else None

    @property
    def named(self) -> str:
        "The module that the path stands for: core/010_shapes.ipynb is core.shapes."
        return ".".join([*self.path.parts[:-1], re.sub(r"^\d+_", "", self.path.stem)])

    @cached_property
    def default_exp(self) -> str | None:
        return next((c.directives["default_exp"] for c in self.cells if c.kind == "code" and "default_exp" in c.directives), None)


@dataclass(frozen=True)
class Import:
    target: str            # As dotted from the top: flame_vision.core.shapes.TensorSpec
    line: int
    whole: bool = False    # Names a package or module itself, or all that is in it
    parent: str = ""       # What a star or a whole import would drag in


def absolute(node: ast.ImportFrom, package: str) -> str:
    "The module of a `from` import; `package` is the importer's own."
    if not node.level: return node.module or ""
    base = package.split(".")
    base = base[: len(base) - node.level + 1]
    return ".".join([*base, *([node.module] if node.module else [])])


def dotted(node: ast.AST) -> list[str] | None:
    "`a.b.c` as its names."
    names = []
    while isinstance(node, ast.Attribute): names, node = [node.attr, *names], node.value
    return [node.id, *names] if isinstance(node, ast.Name) else None


def imports(tree: ast.AST, package: str, root: str, bound: dict[str, str] | None = None) -> Iterator[Import]:
    """What `tree` imports: by statement, wherever it stands; by string; and through the attributes of a package it has.
    `bound` carries the names that hold a module of `root` from one cell to the next."""
    bound = {} if bound is None else bound
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                inside = name.name == root or name.name.startswith(root + ".")
                if inside: bound[name.asname or root] = name.name if name.asname else root
                yield Import(name.name, node.lineno, whole=bool(name.asname) or name.name == root)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, package)
            for name in node.names:
                target = base if name.name == "*" else f"{base}.{name.name}"
                if target == root or target.startswith(root + "."): bound[name.asname or name.name] = target
                yield Import(target, node.lineno, whole=True)
        elif isinstance(node, ast.Call):
            called = (dotted(node.func) or [""])[-1]
            if called in BY_STRING and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
                name = node.args[0].value.replace(":", ".")
                if name.startswith("."):
                    dots = len(name) - len(name.lstrip("."))
                    base = package.split(".")
                    name = ".".join([*base[: len(base) - dots + 1], name.lstrip(".")]).rstrip(".")
                yield Import(name, node.lineno, whole=True)
            elif called == "getattr" and len(node.args) > 1 and isinstance(node.args[1], ast.Constant):
                names = dotted(node.args[0])
                if names and names[0] in bound:
                    yield Import(".".join([bound[names[0]], *names[1:], str(node.args[1].value)]), node.lineno)
    for node in ast.walk(tree):
        names = dotted(node) if isinstance(node, ast.Attribute) else None
        if names and names[0] in bound: yield Import(".".join([bound[names[0]], *names[1:]]), node.lineno)


class Project:
    "A literate project below `top`: notebooks in nbs/, the package `root` beside them."

    def __init__(self, top: Path, root: str = "flame_vision"):
        self.top, self.root, self.nbs, self.lib = top, root, top / "nbs", top / root
        files = [f for f in sorted(self.nbs.rglob("*.ipynb")) if not any(p[0] in "._" for p in f.relative_to(self.nbs).parts)]
        self.notebooks = [Notebook.read(f, self.nbs) for f in files]
        self.numbered = [nb for nb in self.notebooks if nb.number is not None]

    @cached_property
    def modules(self) -> dict[str, int]: return {f"{self.root}.{nb.named}": nb.number for nb in self.numbered}

    @cached_property
    def packages(self) -> set[str]:
        inits = {".".join(f.parent.relative_to(self.top).parts) for f in self.lib.rglob("__init__.py")}
        return inits | {self.root} | {m.rpartition(".")[0] for m in self.modules}

    @cached_property
    def public(self) -> dict[str, dict[str, str]]:
        "Package -> name -> where its `__init__` has it from ('' for its own)."
        table = {}
        for package in self.packages:
            file = self.top.joinpath(*package.split("."), "__init__.py")
            names = table[package] = {}
            if not file.exists(): continue
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom):
                    base = absolute(node, package)
                    for name in node.names: names[name.asname or name.name] = f"{base}.{name.name}"
                elif isinstance(node, ast.FunctionDef | ast.ClassDef): names.setdefault(node.name, "")
                elif isinstance(node, ast.Assign | ast.AnnAssign):
                    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                        for leaf in ast.walk(target):
                            if isinstance(leaf, ast.Name): names.setdefault(leaf.id, "")
        return table

    def below(self, package: str) -> list[str]: return [m for m in self.modules if m.startswith(package + ".")]

    def resolve(self, target: str, whole: bool, seen: tuple = ()) -> list[str] | str | None:
        "The modules that `target` comes from, a complaint, or None for what is not the project's."
        if target != self.root and not target.startswith(self.root + "."): return None
        if target in self.modules: return [target]
        if target in self.packages: return self.below(target) if whole else []
        owner, _, name = target.rpartition(".")
        if owner in self.modules: return [owner]
        if owner in self.packages:
            source = self.public[owner].get(name)
            if source == "" or (name.startswith("__") and name.endswith("__")): return []
            if source is None or source in seen: return f"{target}: cannot tell where it is defined; is it in the package's __init__.py?"
            return self.resolve(source, True, (*seen, source))
        deeper = self.resolve(owner, False, seen)  # an attribute of something inside
        return deeper if deeper is not None else []

    def uphill(self, source: str, where: str, module: str, limit: int, exported: bool, bound: dict) -> Iterator[str]:
        "The imports of `source` that do not lead below `limit`, as sentences."
        try: tree = ast.parse(source)
        except SyntaxError as error:
            if exported: yield f"{where}: does not parse: {error}"
            return
        said = set()
        for imp in imports(tree, module.rpartition(".")[0], self.root, bound):
            top = imp.target.partition(".")[0]
            if exported and top in BUILD_ONLY and top not in said:
                said.add(top)
                yield f"{where}: exported code imports {top}, which only the build has"
            found = self.resolve(imp.target, imp.whole)
            problems = [found] if isinstance(found, str) else [
                f"{imp.target} is of {m} ({self.modules[m]:03})" for m in found or []
                if self.modules[m] >= limit and not (m == module and not exported)]
            for problem in problems[:1]:
                if problem not in said:
                    said.add(problem)
                    yield f"{where}: imports uphill: {problem}"

    def check_names(self) -> Iterator[str]:
        "Numbers are unique, and a notebook exports to the module that its path names."
        owners: dict[int, Path] = {}
        for nb in self.numbered:
            if nb.number in owners: yield f"{nb.path}: number {nb.number:03} is {owners[nb.number]}'s"
            owners.setdefault(nb.number, nb.path)
            if nb.default_exp != nb.named: yield f"{nb.path}: `#| default_exp {nb.default_exp}`, expected {nb.named}"
        for nb in self.notebooks:
            if nb.number is None and (nb.default_exp or any(c.exported for c in nb.cells)): yield f"{nb.path}: exports, but has no number"
            for cell in nb.cells:
                target = next((cell.directives[d] for d in ("export", "exports", "exporti") if cell.directives.get(d)), None)
                if target and cell.kind == "code": yield f"{nb.path}: exports a cell to {target}; one notebook is one module"

    def check_notebooks(self) -> Iterator[str]:
        "Cells import from lower numbers only; a lesson may also import its own module."
        for nb in self.numbered:
            bound: dict[str, str] = {}
            for i, cell in enumerate(nb.cells):
                if cell.kind != "code": continue
                yield from self.uphill(cell.code, f"{nb.path} cell {i}", f"{self.root}.{nb.named}", nb.number, cell.exported, bound)

    def check_modules(self) -> Iterator[str]:
        "The same for the exported files, whose imports nbdev rewrote."
        for module, number in self.modules.items():
            file = self.top.joinpath(*module.split(".")).with_suffix(".py")
            if file.exists():
                yield from self.uphill(file.read_text(encoding="utf-8"), str(file.relative_to(self.top)), module, number, True, {})

    def check_readers(self) -> Iterator[str]:
        "Notebooks without a number use what any user sees: the package, its folders and its top modules, no deeper."
        for nb in self.notebooks:
            if nb.number is not None: continue
            for i, cell in enumerate(nb.cells):
                if cell.kind != "code": continue
                try: tree = ast.parse(cell.code)
                except SyntaxError: continue
                for node in ast.walk(tree):
                    if isinstance(node, ast.ImportFrom): named = [absolute(node, "") if not node.level else "a relative import"]
                    elif isinstance(node, ast.Import): named = [n.name for n in node.names]
                    else: continue
                    for name in named:
                        parts = name.split(".")
                        private = parts[0] == self.root and (len(parts) > 2 or any(p.startswith("_") for p in parts))
                        if private or " " in name: yield f"{nb.path} cell {i}: {name} is not public: import from the package"
