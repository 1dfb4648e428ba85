"README.md from nbs/index.ipynb, with the executed outputs, without Quarto or pandoc."
import json
import posixpath
import re
from pathlib import Path

LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)")
FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.M | re.S)
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def relink(text: str, folder: str) -> str:
    "Links relative to the notebook's folder become relative to the README; code stays as it is."
    def link(match):
        head, target = match.groups()
        if re.match(r"[a-z][a-z0-9+.-]*:|[#/]", target): return match[0]
        return head + posixpath.normpath(posixpath.join(folder, target))

    parts, at = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(link, text[at:fence.start()]), fence[0]]
        at = fence.end()
    return "".join(parts) + LINK.sub(link, text[at:])


def block(text: str, language: str = "") -> str:
    ticks = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text) or [""]))
    return f"{ticks}{language}\n{text}\n{ticks}"


def output(out: dict, cell_id: str) -> str | None:
    "What of one output a README can show."
    kind, data = out["output_type"], out.get("data", {})
    if kind == "error": raise SystemExit(f"readme: cell {cell_id} of the index notebook failed; a README shows working code")
    if kind == "stream": return block(ANSI.sub("", "".join(out["text"])).rstrip())
    if "text/markdown" in data: return "".join(data["text/markdown"]).strip()
    if any(key.startswith("image/") for key in data):
        raise SystemExit(f"readme: cell {cell_id} of the index notebook draws a figure; save it under nbs/images and link it instead")
    return block("".join(data["text/plain"]).rstrip()) if "text/plain" in data else None


def pieces(nb: dict, folder: str):
    "Markdown, code and outputs in order; code cells with nothing between them read as one block."
    codes = []

    def flush():
        if codes: yield block("\n\n".join(codes), "python")
        codes.clear()

    for cell in nb["cells"]:
        source = "".join(cell["source"]).strip()
        if cell["cell_type"] == "markdown":
            yield from flush()
            yield relink(source, folder)
        if cell["cell_type"] != "code": continue
        directives = {re.sub(r"\s", "", line) for line in re.findall(r"^#\|(.*)$", source, re.M)}
        if directives & {"hide", "include:false"}: continue
        code = re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip()
        if code and not directives & {"echo:false", "hide_input"}: codes.append(code)
        if directives & {"output:false", "hide_output"}: continue
        if cell["outputs"]: yield from flush()
        for out in cell["outputs"]: yield output(out, cell.get("id", "?"))
    yield from flush()


def render(path: Path, root: Path) -> str:
    nb = json.loads(path.read_text(encoding="utf-8"))
    name = path.relative_to(root)
    note = f"<!-- Made from {name.as_posix()} by `make readme`: edit the notebook. -->"
    return "\n\n".join([note, *filter(None, pieces(nb, name.parent.as_posix()))]) + "\n"
