"""The help pages, as the frontend fetches them from a running server."""

import io

import pytest
import requests
from lorweb_pack.nodes import NODES
from PIL import Image

from harness.comfyui import PACK_NAME, ROOT
from harness.help_pictures import LARGEST_BYTES, SHOWN_IN
from harness.locales import NEWER

SECTIONS = ("## Inputs", "## Outputs", "## Batches", "## Mistakes and cures", "## Example")
each_node = pytest.mark.parametrize("schema", [node.define_schema() for node in NODES], ids=lambda s: s.node_id)


@each_node
def test_page_is_served(comfy, schema):
    reply = requests.get(f"{comfy.url}/extensions/{PACK_NAME}/docs/{schema.node_id}.md", timeout=30)
    assert reply.status_code == 200


@each_node
def test_page_tells_every_input_and_output(schema):
    sections = read_sections(schema)
    assert tuple(sections) == SECTIONS
    inputs = {*(slot.id for slot in schema.inputs), *NEWER.get(schema.node_id, ())}
    for section, slots in (("## Inputs", inputs), ("## Outputs", outputs(schema))):
        rows = first_cells(sections[section])
        assert sorted(rows) == sorted(f"`{name}`" for name in slots)


@pytest.mark.parametrize("node", SHOWN_IN)
def test_page_shows_the_node(comfy, node):
    """``python -m harness.help_pictures`` after a change of a node's looks."""
    text = (ROOT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    assert f"](images/{node}.jpg)" in text
    reply = requests.get(f"{comfy.url}/extensions/{PACK_NAME}/docs/images/{node}.jpg", timeout=30)
    assert len(reply.content) <= LARGEST_BYTES
    with Image.open(io.BytesIO(reply.content)) as picture:
        assert picture.width > 300


def test_there_is_no_page_without_a_node():
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    assert pages == {node.define_schema().node_id for node in NODES}


def outputs(schema):
    return [output.display_name for output in schema.outputs]


def read_sections(schema):
    text = (ROOT / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    parts = text.split("\n## ")[1:]
    return {f"## {part.splitlines()[0]}": part for part in parts}


def first_cells(section):
    """The names in the first column of a section's table; a row may name several."""
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]
    return [name.strip() for row in rows for name in row.split(",")]
