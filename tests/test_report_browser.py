"""Pages in a real browser: they fetch nothing, raise no error, and fit a phone."""

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from tests.report_data import facts, png, put_metrics, put_pictures, put_predictions
from tests.study_data import realistic
from tracked_cls.report import comparison, study, training
from tracked_cls.report.page import Picture, Section, render
from tracked_cls.tuning import table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PHONE, SECONDS = 390, 120
LONG = "a_class_name_without_any_space_" * 8
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the PATH")

_WRAPPER = """<!doctype html><meta charset="utf-8"><title>wrapper</title><body>{frames}
<script>
window.addEventListener("load", () => setTimeout(() => {{
  const found = Array.from(document.querySelectorAll("iframe"), (frame) => {{
    const inner = frame.contentDocument, root = inner.documentElement;
    return {{
      id: frame.id, width: root.scrollWidth, height: root.scrollHeight, heading: inner.querySelector("h1").textContent,
      pictures: Array.from(inner.images, (image) => image.complete && image.naturalWidth > 0),
      fetched: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name)
        .filter((name) => !name.startsWith("data:")),
    }};
  }});
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.replaceChildren(out);
}}, 500));
</script>
"""


def _pages(tmp_path):
    """One page of every kind, with names that are long and evil, and two with a fault each that must be found."""
    scored = facts(tmp_path / "train", params={"model": LONG, "data.root": LONG}, tags={"data.digest": LONG}, name=LONG)
    put_metrics(scored.folder, {"accuracy": {"value": 0.98, "low": 0.97, "high": 0.99}, LONG: 0.5})
    put_pictures(scored.folder, "curves.png", "test_confusion.png")
    (scored.folder / "plots" / "curves.png").write_bytes(png(1320, 400))
    rows = [f"{LONG}{index},0.9,0.8,0.95,10" for index in range(3)]
    text = "\n".join(["class,recall,recall_low,recall_high,support", *rows])
    (scored.folder / "tables" / "test_per_class.csv").write_text(text)
    other = replace(scored, folder=tmp_path / "other", name="<script>throw new Error('ran')</script>")
    for run, wrong in ((scored, 50), (other, 10)):
        put_predictions(run.folder, [place >= wrong for place in range(200)])
    searched = facts(tmp_path / "study", "study")
    table.write(realistic(40), searched.folder / "trials.csv")
    return {
        "training": training.page(scored),
        "comparison": comparison.page([scored, other], tmp_path / "plots"),
        "study": study.page(searched),
        "plain": render("plain", kind="page", sections=[Section("Part", pictures=[Picture("Title", "alt", png())])]),
    }


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What the browser finds in each page, in frames as wide as a phone (`mlflow ui` has frames too); its messages."""
    tmp_path = tmp_path_factory.mktemp("browser")
    pages = _pages(tmp_path)
    fault = pages["plain"].replace("</main>", '<img src="http://127.0.0.1:9/x.png"><p style="width:900px">wide</p></main>')
    pages["faulty"] = fault.replace("</body>", "<script>console.error('found me')</script></body>")
    frames = "".join(
        f'<iframe id="{name}" width="{PHONE}" height="600" style="border:0" srcdoc="{html.escape(text)}"></iframe>'
        for name, text in pages.items()
    )
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(_WRAPPER.format(frames=frames), encoding="utf-8")
    done = _open(wrapper, tmp_path)
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stderr[-2000:]
    messages = re.findall(r"CONSOLE.*", done.stderr)
    return {one["id"]: one for one in json.loads(html.unescape(found[1]))}, messages


def _open(wrapper, tmp_path):
    """Load a page in a browser that reaches nothing but this machine."""
    switches = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", "--disable-extensions", "--disable-default-apps"),
        *("--enable-logging=stderr", "--hide-scrollbars", "--virtual-time-budget=5000", "--window-size=1200,900", "--dump-dom"),
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    command = [str(CHROMIUM), *switches, wrapper.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment)


OWN = ("training", "comparison", "study", "plain")


@pytest.mark.parametrize("name", OWN)
def test_a_page_is_shown_whole_and_fetches_nothing(seen, name):
    page = seen[0][name]
    assert page["heading"]
    assert page["height"] > 300
    assert all(page["pictures"])
    assert page["fetched"] == []


@pytest.mark.parametrize("name", OWN)
def test_a_page_fits_a_phone(seen, name):
    assert seen[0][name]["width"] == PHONE


def test_no_page_says_anything_on_the_console(seen):
    assert [line for line in seen[1] if "found me" not in line and "127.0.0.1:9" not in line and "ERR_" not in line] == []


def test_the_browser_finds_faults_where_there_are_some(seen):
    faulty = seen[0]["faulty"]
    assert faulty["fetched"] == ["http://127.0.0.1:9/x.png"]
    assert faulty["width"] > PHONE
    assert not all(faulty["pictures"])
    assert any("found me" in line for line in seen[1])
