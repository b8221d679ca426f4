"""What every page that we write must be: self-contained, readable without sight, at any width."""

import html
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
LARGEST = 250_000

_PROBE = """
window.addEventListener('load', () => {
  const said = [...document.querySelectorAll('iframe')].map(f => {
    const d = f.contentDocument, root = d.documentElement;
    const inside = e => e.closest('.scroll') === null && e.parentElement.closest('svg') === null;
    const wide = [...d.body.querySelectorAll('*')].filter(inside)
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1)
      .map(e => e.tagName + '.' + e.getAttribute('class') + ':' + e.textContent.slice(0, 30));
    return {name: f.dataset.name, width: f.clientWidth, page: root.scrollWidth, wide,
      tags: [...d.querySelectorAll('*')].map(e => e.tagName.toLowerCase()),
      loaded: f.contentWindow.performance.getEntriesByType('resource').map(r => r.name),
      small: [...d.querySelectorAll('main *:not(svg *)')]
        .filter(e => parseFloat(f.contentWindow.getComputedStyle(e).fontSize) < 11).length,
      height: root.scrollHeight};
  });
  document.getElementById('said').textContent = JSON.stringify(said);
});
"""


def tree_of(text):
    """The elements of a page, which must be well-formed."""
    assert text.startswith("<!DOCTYPE html>\n")
    return ET.fromstring(text.partition("\n")[2])


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def assert_nothing_is_loaded_and_nothing_runs(text):
    root = tree_of(text)
    assert not list(root.iter("script")) and not list(root.iter("img"))
    for element in root.iter():
        for key, value in element.attrib.items():
            assert not key.startswith("on"), key
            if key in ("href", "src", "srcset", "action"):
                assert value.startswith(("#", "data:,")), value
    style = text_of(root.find("head/style"))
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert root.find("head/meta[@http-equiv]").get("content").startswith("default-src 'none';")
    assert len(text) < LARGEST


def assert_every_reference_arrives(text):
    root = tree_of(text)
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    wanted = [e.get("aria-labelledby") for e in root.iter() if e.get("aria-labelledby")]
    wanted += [e.get("href")[1:] for e in root.iter("a")]
    assert set(wanted) <= set(ids)


def assert_whoever_cannot_see_it_hears_the_same(text):
    root = tree_of(text)
    assert root.get("lang") == "en" and text_of(root.find("head/title"))
    for picture in root.iter("svg"):
        named = picture.get("aria-label") or picture.get("aria-labelledby")
        assert (picture.get("role") == "img" and named) or picture.get("aria-hidden") == "true"
    for table in root.iter("table"):
        assert text_of(table.find("caption"))
        assert all(th.get("scope") in ("row", "col") for th in table.iter("th"))
        columns = len(table.findall("thead/tr/th"))
        assert {len(row) for row in table.findall("tbody/tr")} <= {columns}
    levels = [int(e.tag[1]) for e in root.iter() if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def browse(tmp_path, *options):
    """What a headless browser prints, and the complaints of its console."""
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
        "--enable-logging=stderr", "--window-size=1400,1000", *options,
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr[-2_000:]
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def assert_a_browser_shows(tmp_path, wanted):
    """Each (name, page, width in pixels) is shown whole and as written, without a complaint."""
    frames = "".join(
        f'<iframe data-name="{number}" style="width:{width}px;height:900px;border:0" '
        f'srcdoc="{html.escape(text)}"></iframe>'
        for number, (_, text, width) in enumerate(wanted)
    )
    harness = tmp_path / "harness.html"
    harness.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><pre id="said"></pre>{frames}'
        f"<script>{_PROBE}</script>",
        "utf-8",
    )
    dom, complaints = browse(tmp_path, "--dump-dom", harness.as_uri())
    assert complaints == []
    said = json.loads(html.unescape(re.search('<pre id="said">(.*?)</pre>', dom, re.S).group(1)))
    assert len(said) == len(wanted) > 0
    for frame, (name, text, width) in zip(said, wanted, strict=True):
        where = (name, width)
        assert frame["width"] == width, where
        assert frame["page"] <= width and frame["wide"] == [], (where, frame["wide"])
        assert frame["loaded"] == [] and frame["small"] == 0 and frame["height"] > 500, where
        # The browser had nothing to mend: its tree is ours, element by element.
        assert frame["tags"] == [e.tag for e in tree_of(text).iter()], where
