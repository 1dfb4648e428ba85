"Model cards against the Hub's own parser and a Markdown parser; differences that turn one manifest into the other; lineages against networkx."
import json
import re
import xml.etree.ElementTree as ET
from html import unescape

import networkx as nx
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from flame_vision.architectures.base import ARCHITECTURES
from flame_vision.models import create_model
from flame_vision.versioning import diff_versions, lineage_of, model_card
from flame_vision.versioning.cards import LICENSES, TASKS, card_head, one_line, task_of
from flame_vision.versioning.differences import OWN, PARTS, flat
from flame_vision.versioning.lineage import HEIGHT, WIDTH, places, rows_of, ways_of
from flame_vision.versioning.manifest import FileEntry, Manifest, sealed

RENDER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
HOSTILE = [
    "<script>alert(1)</script>", "[x](javascript:alert(1))", "![x](http://evil/p.png)", "a\n---\nlicense: mit\n---\n", "\n# owned\n", "| a | b |",
    "`x`", "``` \nrun\n```", "*x* __y__ ~~z~~", "&lt;b&gt;", "http://evil.example www.evil.example a@evil.example", "\\", "\\|", "x\\", "- item",
    "1. item", "> quote", "\u202egpj.exe", "a\x00b\x1b[31m", "---", "...", "!!python/object:os.system", "&anchor *anchor", "{a: b}", "yes",
    "null", "1.0", "2026-01-01", "@user", "#", "</details>", "<!--", "$$x$$", "\ud800", " ", "x" * 10_000, "é\u0301漢字 🦉", "[ref]: http://evil",
    "===", "\t\tcode"]
QUICK = [Phase.explicit, Phase.reuse, Phase.generate]  # shrinking a card takes minutes
words = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=30), st.lists(st.sampled_from(HOSTILE), min_size=2, max_size=3).map("".join))


def manifest(**fields):
    usual = {"name": "digits", "version": "1.0.0", "created": "2026-01-01T00:00:00+00:00", "architecture": "resnet18", "parameters": 11_181_642}
    return Manifest(**usual | fields)


def body(card): return card.split("\n---\n", 1)[1]


# Cards

def test_the_hub_reads_all_of_it():
    said = manifest(
        license="CC-BY-NC-4.0", tags=["ocr", "demo", "ocr"], output_shape=[1, 10], input_shape=[1, 3, 32, 32],
        metrics={"test/accuracy": 0.5, "val/accuracy": 0.25, "val/loss": 1, "test/per_class": [0.1, 0.2], "images_per_second": 80.0,
        "val/bad": "nan"},
        data={"name": "digits", "fingerprint": "ab"}, provenance={"source": "timm/resnet18.a1_in1k", "license": "apache-2.0"})
    card = model_card(said)
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("cc-by-nc-4.0", "flame-vision", "image-classification")
    assert data.tags == ["flame-vision", "resnet18", "ocr", "demo"] and data.base_model == "timm/resnet18.a1_in1k"
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {("test", "accuracy"): 0.5, ("val", "accuracy"): 0.25, ("val", "loss"): 1}
    assert {r.dataset_name for r in data.eval_results} == {"digits"} and data.metrics == ["accuracy", "loss"]
    assert ModelCard(card).content == card, "the Hub writes it back as it was"


@pytest.mark.parametrize("license, fields", [
    ("MIT", {"license": "mit"}), ("apache 2.0", {"license": "apache-2.0"}), ("Our Terms", {"license": "other", "license_name": "our-terms"}),
    ("https://example.org/terms", {"license": "other", "license_name": "see-link", "license_link": "https://example.org/terms"}),
    ("$$$", {"license": "other", "license_name": "custom"}), (None, {}), ("", {}),
    *((name, {"license": name}) for name in sorted(LICENSES)[:3])], ids=str)
def test_licenses(license, fields):
    data = ModelCard(model_card(manifest(license=license))).data.to_dict()
    assert {k: v for k, v in data.items() if k.startswith("license")} == fields


@pytest.mark.parametrize("name, task", [
    ("resnet18", "classification"), ("fcn_resnet50", "segmentation"), ("fcos_resnet50_fpn", "detection"), ("segmenter", "segmentation"),
    ("detector", "detection"), ("classifier", "classification")])
def test_the_task_is_that_of_the_architecture(name, task):
    import torch
    parts = {"backbone": "resnet18"} if name in ("segmenter", "detector", "classifier") else {}
    with torch.device("meta"): model = create_model(name, num_classes=3, **parts)
    said = {"architecture": name, "config": model.config}
    assert task_of(manifest(**said)) == task
    assert task_of(manifest(**said, output_shape=model.get_output_shape([1, 3, 64, 64]))) == task
    assert card_head(manifest(**said))["pipeline_tag"] == TASKS[task]


KINDS = {"deeplab": "segmentation", "fcn": "segmentation", "segmen": "segmentation", "fcos": "detection", "retina": "detection",
         "detect": "detection"}


def test_every_published_network_has_a_task():
    for name in ARCHITECTURES.entries:
        task = task_of(manifest(architecture=name, config={"name": name, "arguments": {"num_classes": 3}}))
        kind = next((kind for start, kind in KINDS.items() if name.startswith(start)), "classification")
        assert task == kind, name


def test_an_own_class_is_no_classifier_unless_it_says_so():
    own = {"architecture": "Net", "module": "__main__", "output_shape": [1, 3]}
    assert task_of(manifest(**own)) is None and "pipeline_tag" not in card_head(manifest(**own))
    assert task_of(manifest(**own, class_names=["a", "b", "c"])) == "classification"
    assert task_of(manifest(**own | {"output_shape": [1, 3, 8, 8]}, class_names=["a", "b", "c"])) == "segmentation"
    assert task_of(manifest(**own | {"output_shape": {"boxes": [1]}})) is None
    assert "model=…" in model_card(manifest(**own)) and "predict" not in model_card(manifest(**own))


def own_html(tokens): return [t.content for token in tokens for t in (token, *(token.children or ())) if t.type in ("html_inline", "html_block")]


@given(st.data())
@settings(max_examples=40, deadline=None, phases=QUICK)
def test_what_others_wrote_stays_text(data):
    def word(): return data.draw(words)
    said = manifest(
        name=word(), version=word(), architecture=word(), author=word(), description=word() + "\n\n" + word(), license=word(), tags=[word(), word()],
        class_names=[word() for _ in range(data.draw(st.sampled_from([0, 1, 25])))], metrics={word(): 0.5, "test/" + word(): word()},
        data={word(): word(), "name": word()},
        preprocessing=[{"name": word(), "arguments": {word(): word()}}], parents=[word()], wandb_run=word(), code={"commit": word(), "dirty": True},
        libraries={word(): word()}, provenance={"source": word(), "license": word()}, module=data.draw(st.sampled_from([None, word()])),
        config={"name": word(), "arguments": {"backbone": word(), "head": {"name": word()}}}, input_shape=word(), output_shape={word(): [1, word()]})
    card = model_card(said)
    assert model_card(said) == card
    card.encode()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202e\u2028\ud800]", card)
    head = ModelCard(card).data.to_dict()
    assert set(head) <= {"license", "license_name", "license_link", "library_name", "pipeline_tag", "tags", "base_model",
        "base_model_relation", "metrics", "model-index"}
    assert all(isinstance(tag, str) and "\n" not in tag and len(tag) <= 100 for tag in head["tags"]) and head["library_name"] == "flame-vision"
    assert yaml.safe_load(card.split("\n---\n")[0].removeprefix("---\n"))["tags"] == head["tags"]
    tokens = RENDER.parse(body(card))
    kinds = {t.type for token in tokens for t in (token, *(token.children or ()))}
    assert not kinds & {"link_open", "image", "hr", "blockquote_open", "ordered_list_open", "bullet_list_open", "code_block", "em_open",
        "strong_open", "s_open"}
    assert all(re.fullmatch(r"(<details><summary>[\d,]+ classes</summary>|</details>)\s*", html) for html in own_html(tokens))
    titles = [tokens[i + 1].content for i, t in enumerate(tokens) if t.type == "heading_open"]
    chapters = ("Metrics", "Use", "Classes", "From a picture to the input", "Where it comes from", "License")
    assert titles[1:] == [t for t in chapters if t in titles[1:]]
    for i, t in enumerate(tokens):  # each row has as many cells as its table's head
        if t.type == "tr_open":
            row = [u.type for u in tokens[i:next(j for j in range(i, len(tokens)) if tokens[j].type == "tr_close")]]
            assert row.count("td_open") + row.count("th_open") in (2, 3)
    assert [t.info for t in tokens if t.type == "fence"] == ["python"]


@given(words)
@settings(max_examples=60, deadline=None)
def test_a_class_name_is_shown_as_it_is(word):
    rendered = RENDER.render(body(model_card(manifest(class_names=[word, "end"]))))
    cells = [re.sub("<[^>]*>", "", c) for c in re.findall(r"<td>(.*?)</td>", rendered)]
    assert unescape(cells[cells.index("end") - 2]) == one_line(word)


def test_the_code_of_a_card_is_python():
    for name in ("digits", "a'b", 'x"y\\', "``` \n import os"):
        block = next(t.content for t in RENDER.parse(body(model_card(manifest(name=name, output_shape=[1, 3])))) if t.type == "fence")
        compile(block, "card", "exec")


def test_a_card_does_not_know_its_own_digest():
    plain = manifest(files={"model.safetensors": FileEntry(size=3, sha256="ab" * 32)})
    whole = sealed(plain.model_copy(update={"files": {**plain.files, "README.md": FileEntry(size=9, sha256="cd" * 32)}, "id": "x1"}))
    assert model_card(whole) == model_card(plain) and whole.digest not in model_card(whole) and "ab" * 32 in model_card(plain)


def test_a_thousand_classes_fold_away():
    card = model_card(manifest(class_names=[f"class {i}" for i in range(2500)]))
    assert "<summary>2,500 classes</summary>" in card and "and 1,500 more in `manifest.json`" in card and card.count("\n") < 60


# Differences

values = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.floats(-2, 2), st.sampled_from(["", "x", "<b>", "a.b"])),
                      lambda inner: st.one_of(st.lists(inner, max_size=3),
                      st.dictionaries(st.sampled_from(["a", "b", "name", "arguments", "a.b", ""]), inner, max_size=3)),
                      max_leaves=8)
nests = st.dictionaries(st.sampled_from(["backbone", "head", "depths", "a.b"]), values, max_size=4)


def without_empty_arguments(value):
    "A part without arguments is the same as its name."
    if isinstance(value, list): return [without_empty_arguments(v) for v in value]
    if not isinstance(value, dict): return value
    if set(value) == {"name", "arguments"} and isinstance(value["name"], str) and value["arguments"] == {}: return value["name"]
    return {k: without_empty_arguments(v) for k, v in value.items()}


@given(nests, nests)
@settings(max_examples=60, deadline=None)
def test_a_difference_turns_one_configuration_into_the_other(one, two):
    a, b = (manifest(config={"name": "resnet18", "arguments": arguments}) for arguments in (one, two))
    diff = diff_versions(a, b)
    old, new = (dict(flat(m.config.arguments)) if m.config.arguments else {} for m in (a, b))
    for change in diff.parts.get("config", []):
        assert change.kind == ("added" if change.path not in old else "removed" if change.path not in new else "changed")
        if change.kind == "removed": del old[change.path]
        else: old[change.path] = change.after
    assert json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True)
    texts = [json.dumps(without_empty_arguments(m.config.arguments), sort_keys=True) for m in (a, b)]
    assert bool(diff) == (texts[0] != texts[1]) and set(diff.parts) <= {"config"}
    json.dumps(diff.to_dict(), allow_nan=False)
    assert "<b>" not in diff._repr_html_().replace("&lt;b&gt;", "") and "\x00" not in str(diff)


OTHER = {
    "architecture": "resnet34", "module": "m", "architecture_digest": "ff", "config": {"name": "resnet18"}, "class_names": ["a"], "parameters": 5,
    "macs": 7, "preprocessing": [{"name": "resize"}], "input_shape": [1], "output_shape": [2], "metrics": {"a": 1}, "tags": ["t"],
    "provenance": {"source": "s"}, "data": {"name": "d"}, "parents": ["p@1"], "wandb_run": "r", "seed": 1, "code": {"commit": "c"},
    "libraries": {"torch": "1"}, "author": "ada", "description": "d", "license": "mit",
    "files": {"model.safetensors": FileEntry(size=1, sha256="a")}}


@pytest.mark.parametrize("field", sorted(set(Manifest.model_fields) - (OWN - {"class_names", "preprocessing", "files"})))
def test_no_field_is_overlooked(field):
    one, two = manifest(), manifest(**{field: OTHER[field]})
    forward, back = diff_versions(one, two), diff_versions(two, one)
    part = {"class_names": "class names", "preprocessing": "preprocessing", "files": "files"}.get(field, PARTS.get(field, "about"))
    assert list(forward.parts) == [part] == list(back.parts) and len(forward.parts[part]) == len(back.parts[part]) == 1
    assert str(forward).count("\n") == 3 and part in forward._repr_html_()


def test_what_two_versions_never_share_is_no_difference():
    two = manifest(version="2.0.0", created="2027-01-01", id="y", files={"README.md": FileEntry(size=1, sha256="b")})
    assert not diff_versions(manifest(), sealed(two))


@given(st.lists(st.sampled_from("abcdA"), max_size=6), st.lists(st.sampled_from("abcdA"), max_size=6))
@settings(max_examples=50, deadline=None)
def test_classes_by_their_outputs(old, new):
    diff = diff_versions(manifest(class_names=old), manifest(class_names=new))
    found = diff.parts.get("class names", [])
    assert bool(found) == (old != new)
    assert len([c for c in found if c.kind == "added"]) - len([c for c in found if c.kind == "removed"]) == len(new) - len(old)
    for c in found:
        name = c.path.split(" (")[0]
        assert c.before is None or old[c.before] == name
        assert c.after is None or new[c.after] == name
    assert diff.outputs_moved == (new[:len(old)] != old)


def test_order_of_steps_and_words():
    steps = [{"name": "resize", "arguments": {"size": 8}}, {"name": "flip"}, {"name": "flip"}]
    diff = diff_versions(manifest(preprocessing=steps, tags=["a", "b"]), manifest(preprocessing=steps[::-1], tags=["b", "a"]))
    assert [(c.path, c.kind) for c in diff.parts["preprocessing"]] == [("order", "moved")] and [c.path for c in diff.parts["about"]] == ["tags"]
    diff = diff_versions(manifest(preprocessing=steps), manifest(preprocessing=steps[:2]))
    assert [(c.path, c.kind) for c in diff.parts["preprocessing"]] == [("flip (2)", "removed")]


def test_a_long_difference_is_told_in_short():
    diff = diff_versions(manifest(class_names=[]), manifest(class_names=[f"<c{i}>" for i in range(3000)]))
    assert str(diff).count("\n") < 40 and "and 2,970 more" in str(diff) and len(diff.to_dict()["changes"]["class names"]) == 3000
    assert "<c" not in diff._repr_html_().replace("<caption", "")


@pytest.mark.parametrize("weights, says", [(("a", "a"), True), (("a", "b"), False), ((None, "a"), None)])
def test_weights(weights, says):
    made = [manifest(files={"model.safetensors": FileEntry(size=1, sha256=w)} if w else {}) for w in weights]
    assert diff_versions(*made).weights_equal is says


# Lineages

def family(edges):
    "Manifests with the given parents, and the same as a graph."
    graph = nx.DiGraph(edges)
    return {n: manifest(name=n, parents=sorted(graph.predecessors(n))) for n in graph.nodes}, graph


edges = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)).map(lambda e: (f"m{e[0]}@1", f"m{e[1]}@1")), min_size=1, max_size=25)


@given(edges)
@settings(max_examples=30, deadline=None)
def test_relatives_are_those_of_networkx(pairs):
    manifests, graph = family(pairs)
    for start in list(graph.nodes)[:2]:
        lineage = lineage_of(start, manifests)
        assert set(lineage.ancestors) == nx.ancestors(graph, start) and set(lineage.descendants) == nx.descendants(graph, start)
        assert lineage.circular == (graph.has_edge(start, start) or any(start in nx.descendants(graph, child) for child in graph.successors(start)))
        kept = {start} | nx.ancestors(graph, start) | nx.descendants(graph, start)
        assert set(lineage.nodes) == kept and {(p, c) for p, c in lineage.to_dict()["edges"]} == set(graph.subgraph(kept).edges)
        assert all(name in str(lineage) and name in lineage.mermaid() for name in kept)
        ET.fromstring(lineage._repr_svg_())


@given(edges)
@settings(max_examples=50, deadline=None)
def test_parents_stand_above_and_nothing_overlaps(pairs):
    manifests, graph = family([(a, b) for a, b in pairs if a < b] or [("a@1", "b@1")])
    lineage = lineage_of(max(graph.nodes), manifests)
    rows = rows_of(lineage)
    ways = ways_of(rows, lineage.parents)
    at = places(rows, ways)
    assert all(at[p][1] < at[c][1] for p, c in ways)
    boxes = [at[name] for name in lineage.nodes]
    assert all(abs(x - u) >= WIDTH for i, (x, y) in enumerate(boxes) for u, v in boxes[:i] if y == v)
    bends = [at[place] for way in ways.values() for place in way[1:-1]]
    assert all(abs(x - u) > WIDTH / 2 for x, y in bends for u, v in boxes if abs(y - v) < HEIGHT), "an arrow runs through a box"


def test_states_and_hostile_names():
    evil = "<script>x</script>\"]; click v0 \"javascript:1\"\n--> `b` &amp;"
    manifests = {"a@1": manifest(name="a", parents=[evil, "gone@1", "hf/x"], provenance={"source": "hf/y"}), "gone@1": manifest(name="gone"),
                 "b@1": manifest(name="b", provenance={"source": "hf/y"}, parents=[])}
    lineage = lineage_of("a@1", manifests, deleted={"gone@1"})
    assert {n.name: n.state for n in lineage.nodes.values()} == {"a@1": "registered", evil: "missing", "gone@1": "deleted", "hf/x": "missing"}
    assert lineage_of("b@1", manifests).nodes["hf/y"].state == "published"
    svg = ET.fromstring(lineage._repr_svg_())
    assert {node.tag.split("}")[1] for node in svg.iter()} == {"svg", "rect", "text", "path"} and len(svg.findall(".//{*}rect")) == 4
    assert not re.search(r"<script|click v0 \"", lineage.mermaid()) and lineage.mermaid().count("\n") == 4 + 3 + 4 + 1
    assert "\n---" not in str(lineage) and str(lineage_of("nobody@1", {})).startswith("nobody@1  (missing)")


def test_large_families_end():
    diamonds = [(f"{i}{a}@1", f"{i + 1}{b}@1") for i in range(60) for a in "xy" for b in "xy"]
    lineage = lineage_of("60x@1", family(diamonds)[0])
    assert len(lineage.ancestors) == 120 and str(lineage).count("\n") < 300
    assert len(ET.fromstring(lineage._repr_svg_()).findall(".//{*}rect")) == 101
    chain = family([(f"{i}@1", f"{i + 1}@1") for i in range(3000)])[0]
    lineage = lineage_of("1500@1", chain)
    assert len(lineage.ancestors) == len(lineage.descendants) == 1500 and len(str(lineage)) < 500_000 and "… and more" in str(lineage)
    assert len(ET.fromstring(lineage._repr_svg_()).findall(".//{*}rect")) == 101
