"""The docs site: processed pages in _proc, then HTML in _docs, by Quarto where it is installed, else plainly by nbconvert.

nbdev's own `nbdev_docs` is not used: without Quarto it tries to install it by sudo, and it rewrites README.md its own way.
"""
import os
import re
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
NBS, PROC, DOCS = ROOT / "nbs", ROOT / "_proc", ROOT / "_docs"
LAST = ["tutorials", "guides"]
TITLES = {"data": "Data", "huggingface": "Hugging Face"}


def order(path: Path):
    "Floors by number, then the folders without numbers."
    number = re.match(r"\d+", path.name)
    folder = path.parts[0] if len(path.parts) > 1 else ""
    return LAST.index(folder) if folder in LAST else -1, int(number[0]) if number else -1, path.as_posix()


def sidebar(notebooks: list[Path]) -> list:
    "index first; a folder is a section and stands where its lowest number does."
    contents, sections = [], {}
    for path in sorted(notebooks, key=order):
        folder = path.parts[0] if len(path.parts) > 1 else None
        if folder and folder not in sections:
            sections[folder] = {"section": TITLES.get(folder, folder.capitalize()), "contents": []}
            contents.append(sections[folder])
        (sections[folder]["contents"] if folder else contents).append(path.as_posix())
    return contents


def keep_unknown_annotations():
    "Let a name that is imported under TYPE_CHECKING alone stand as it is written; nbdev would stop at it."
    import inspect
    evaluated = inspect.get_annotations

    def get_annotations(obj, *, eval_str=False, **names):
        try: return evaluated(obj, eval_str=eval_str, **names)
        except NameError: return evaluated(obj, eval_str=False, **names)
    inspect.get_annotations = get_annotations


def process() -> list:
    "Write nbdev.yml and sidebar.yml, and the notebooks as nbdev shows them into _proc. Returns the sidebar."
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    keep_unknown_annotations()
    refresh_quarto_yml()
    contents = sidebar([p.relative_to(NBS) for p in NBS.rglob("*.ipynb") if not any(q[0] in "._" for q in p.relative_to(NBS).parts)])
    (NBS / "sidebar.yml").write_text(yaml.safe_dump({"website": {"sidebar": {"contents": contents}}}, sort_keys=False), encoding="utf-8")
    shutil.rmtree(PROC, ignore_errors=True)
    proc_nbs(force=True, n_workers=0)  # in this process: a worker would not know of `keep_unknown_annotations`
    if not list(PROC.rglob("*.ipynb")):
        sys.exit("docs: nbdev processed no page (it skips checkouts below a folder whose name starts with a dot)")
    return contents


def page_name(path: Path) -> Path:
    "As nbdev names it: without the number."
    return path.with_name(re.sub(r"^\d+[a-zA-Z0-9]*_", "", path.name.lower())).with_suffix(".html")


def plain(nb):
    "A processed notebook as nbconvert wants it: front matter as a title, directives obeyed and gone."
    for cell in nb.cells:
        if cell.cell_type == "raw" and cell.source.strip().startswith("---"):
            front = yaml.safe_load(cell.source.strip().strip("-")) or {}
            cell.cell_type, cell.source = "markdown", f"# {front.get('title', '')}\n\n> {front.get('description', '')}"
        if cell.cell_type != "code": continue
        cell.pop("has_sd", None)
        cell.update(execution_count=None, metadata=cell.get("metadata", {}), outputs=cell.get("outputs", []))
        for output in cell.outputs:
            if output.output_type in ("execute_result", "display_data"): output.setdefault("metadata", {})
            if output.output_type == "execute_result": output.execution_count = None
            for kind, text in output.get("data", {}).items():  # attributes that only Quarto reads
                if kind == "text/markdown": output.data[kind] = re.sub(r'\{target="_blank"[^}]*\}', "", "".join(text))
        directives = {re.sub(r"\s", "", line) for line in re.findall(r"^#\|(.*)$", cell.source, re.M)}
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
        cell.metadata["tags"] = ["no-input"] if "echo:false" in directives else []
    return nb


def navigation(contents: list, here: Path, titles: dict) -> str:
    def link(name):
        target = os.path.relpath(page_name(Path(name)), here.parent).replace(os.sep, "/")
        text = escape(titles.get(name, name))
        return f"<li><b>{text}</b></li>" if page_name(Path(name)) == here else f'<li><a href="{target}">{text}</a></li>'

    def item(entry):
        if isinstance(entry, str): return link(entry)
        return f"<li>{escape(entry['section'])}<ul>{''.join(map(item, entry['contents']))}</ul></li>"
    return f"<nav><ul>{''.join(map(item, contents))}</ul></nav>"


STYLE = """<style>
body {margin-left: 17rem !important} main {max-width: 56rem}
nav {position: fixed; top: 0; left: 0; bottom: 0; width: 15rem; overflow: auto; padding: 1rem}
nav {font: 13px/1.6 sans-serif; border-right: 1px solid #ddd}
nav ul {list-style: none; padding-left: .8rem; margin: 0}
.highlight pre {white-space: pre-wrap !important}
@media (max-width: 60rem) {body {margin-left: 0 !important} nav {position: static; width: auto}}
</style>"""


def preview(contents: list) -> int:
    "One plain HTML page a notebook, with the sidebar, links between pages kept inside the preview."
    import nbformat
    from nbconvert import HTMLExporter
    from nbdev.config import get_config
    cfg = get_config()
    site = f"{cfg.doc_host}{cfg.doc_baseurl}/"
    exporter = HTMLExporter(template_name="lab", exclude_input_prompt=True, exclude_output_prompt=True, embed_images=True,
                            config={"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"no-input"}}})
    pages = {p.relative_to(PROC).as_posix(): plain(nbformat.read(p, as_version=4)) for p in sorted(PROC.rglob("*.ipynb"))}
    titles = {name: next((m[1] for c in nb.cells if (m := re.match(r"# (.+)", c.source))), name) for name, nb in pages.items()}
    for name, nb in pages.items():
        here = page_name(Path(name))
        html, _ = exporter.from_notebook_node(nb, resources={"metadata": {"path": str((PROC / name).parent), "name": titles[name]}})
        up = "../" * (len(here.parts) - 1)
        html = html.replace(site, up)
        html = re.sub(r'(href=")(?![a-z]+:|[#/])([^"#]+\.ipynb)', lambda m: m[1] + page_name(Path(m[2])).as_posix(), html)
        html = html.replace("</head>", STYLE + "</head>", 1)
        html = re.sub(r"(<body[^>]*>)", lambda m, h=here: m[1] + navigation(contents, h, titles), html, count=1)
        (DOCS / here).parent.mkdir(parents=True, exist_ok=True)
        (DOCS / here).write_text(html, encoding="utf-8")
    return len(pages)


def main():
    os.chdir(ROOT)
    contents = process()
    shutil.rmtree(DOCS, ignore_errors=True)
    if shutil.which("quarto"):
        if subprocess.run(["quarto", "render", "--no-cache"], cwd=PROC).returncode: sys.exit("docs: quarto failed, see above")
        shutil.move(PROC / DOCS.name, DOCS)
        print("docs: _docs/index.html, rendered by Quarto")
    else:
        print(f"docs: {preview(contents)} plain pages in _docs (install Quarto for the real site); processed notebooks in _proc")


if __name__ == "__main__": main()
