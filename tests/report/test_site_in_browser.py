"""The site as a browser shows it from disk, in a real one without a window (see installed.py where there is none)."""

import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from installed import lacking
from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright
from report.runs import made_up_run, predict, retrain

from sipp_bench.report import lineage
from sipp_bench.report.build import write_report
from sipp_bench.report.render import PAGES
from sipp_bench.zoo import data

HOSTILE = "<script>alert(1)</script>"
METHOD = '"><b>bold</b><img src=x onerror=alert(2)>'  # Plotly knows <b>
OLD = "folder:'\"</script><b>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs: one with predictions and retraining, with hostile names; one of before, without predictions."""
    methods = {"sipp-det": "sipp-det", METHOD: "magnitude"}
    run = made_up_run(methods, targets=[(HOSTILE, "digits")], keeps=(0.5, 0.2), seeds=(0,))
    predict(run, data.load("digits", seed=0).test.labels.numpy())
    retrain(run)
    run.meta["suite"] = run.meta["suite"] | {"name": HOSTILE, "text": f"# {HOSTILE}"}
    old = made_up_run({"sipp-det": "sipp-det"}, targets=[("lenet-5", OLD)], keeps=(0.2,), seeds=(0,))
    with pytest.MonkeyPatch.context() as patch:
        save = Figure.savefig
        drawn: dict[str, bytes] = {}

        def draw_once(figure: Figure, file: BytesIO, **options: Any) -> None:
            """Drawing takes the time: all figures are the first one."""
            kind = options["format"]
            if kind not in drawn:
                save(figure, content := BytesIO(), **options)
                drawn[kind] = content.getvalue()
            file.write(drawn[kind])

        patch.setattr(Figure, "savefig", draw_once)
        patch.setattr(lineage, "class_names", lambda name, count: [f"{HOSTILE}{index}" for index in range(count)])
        return write_report({"new": run, "old": old}, tmp_path_factory.mktemp("site")).parent


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        lacking("no Chromium on this machine: install one (Debian: apt install chromium) to test pages in it")
    with sync_playwright() as started:
        # Root has no sandbox, nor has a container without user namespaces; the pages are our own.
        launched = started.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test on any message, error, dialogue or request that leaves the disk."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(120_000)  # on a busy machine a click can take its time
    opened, wrong = context.new_page(), []
    opened.on("console", lambda message: wrong.append(f"console: {message.text}"))
    opened.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    opened.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    outside = ("file:", "data:", "blob:")
    opened.on("request", lambda sent: None if sent.url.startswith(outside) else wrong.append(f"request: {sent.url}"))
    opened.on("requestfailed", lambda sent: wrong.append(f"failed: {sent.url}"))
    yield opened
    context.close()
    assert wrong == []


def go(page: Any, site: Path, file: str) -> None:
    page.goto((site / file).as_uri())


def shown(page: Any) -> int:
    """How many points are in the plot, and as many in the words above it and in the table."""
    count = page.evaluate(
        "document.getElementById('plot').data.filter(t => t.mode === 'markers').reduce((n, t) => n + t.x.length, 0)"
    )
    assert page.locator("#count").inner_text().startswith(f"{count} of 11 models shown")
    assert page.locator("#table tbody tr").count() == count
    return int(count)


def pick(page: Any, words: str, which: int = 0) -> None:
    page.locator("#list").evaluate("list => list.open = true")
    page.locator("#table tbody tr").filter(has_text=words).first.locator("button").nth(which).click()


@pytest.mark.parametrize("file", list(PAGES))
def test_pages_load_and_fit_a_phone(page: Any, site: Path, file: str) -> None:
    go(page, site, file)
    assert page.locator("h1").inner_text() == PAGES[file]
    assert page.locator("nav [aria-current=page]").inner_text() == PAGES[file]
    for image in page.locator("main img").all():
        image.scroll_into_view_if_needed()
        assert image.evaluate("async image => { await image.decode(); return image.naturalWidth; }") > 100
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # A page that never fits would pass on one that is cut off: the text itself must lie inside.
    assert page.locator("main p").first.bounding_box()["width"] <= PHONE["width"]
    assert page.locator("body img[src=x]").count() == 0


def test_names_are_shown_as_text(page: Any, site: Path) -> None:
    go(page, site, "index.html")
    assert HOSTILE in page.locator("#answer").inner_text()
    assert METHOD in page.locator("#answer").inner_text()
    go(page, site, "explorer.html")
    assert HOSTILE in page.locator("#filter-network").inner_text()
    assert OLD in page.locator("#filter-data").inner_text()
    assert METHOD in page.locator("#methods").inner_text()
    assert METHOD in page.locator("#plot .legend").text_content()
    pick(page, METHOD)
    assert f"{HOSTILE}0" in page.locator("#classes").inner_text()
    assert HOSTILE in page.locator("#flips").inner_text()


def test_filters_and_axes_change_what_is_shown(page: Any, site: Path) -> None:
    go(page, site, "explorer.html")
    assert shown(page) == 11
    page.select_option("#filter-run", label="old")
    assert shown(page) == 2
    page.select_option("#filter-run", label="all")
    page.select_option("#filter-made", label="retrain")
    assert shown(page) == 4
    page.select_option("#filter-keep", label="0.2")
    assert shown(page) == 2
    page.locator("#methods label").filter(has_text="sipp-det").locator("input").uncheck()
    assert shown(page) == 1
    page.click("#no-methods")
    assert shown(page) == 0
    page.click("#all-methods")
    page.select_option("#y", label="Flipped predictions")
    assert shown(page) == 2
    assert page.evaluate("document.getElementById('plot').layout.yaxis.title.text") == "Flipped predictions"
    page.select_option("#filter-made", label="train")
    page.select_option("#filter-keep", label="all")
    assert "2 more lack one of the two measures" in page.locator("#count").inner_text()


def test_a_point_in_the_plot_can_be_chosen(page: Any, site: Path) -> None:
    go(page, site, "explorer.html")
    page.select_option("#filter-made", label="retrain")
    page.select_option("#filter-keep", label="0.2")
    page.locator("#methods label").filter(has_text="sipp-det").locator("input").uncheck()
    page.locator("#plot .points path").first.click(force=True)
    steps = page.locator("#lineage li").all_inner_texts()
    assert len(steps) == 3
    assert steps[0].startswith("trained, dense")
    assert steps[2].startswith(f"{METHOD}, keep 0.2, retrained")
    assert steps[2].endswith("test accuracy 90.0 %")


def test_two_models_stand_side_by_side(page: Any, site: Path) -> None:
    go(page, site, "explorer.html")
    pick(page, f"{METHOD}, keep 0.2, retrained", 0)
    pick(page, "sipp-det, keep 0.5, retrained", 1)
    models = page.evaluate("window.SIPP_BENCH.models")
    one, other = (
        next(model for model in models if model["id"].endswith(f"{label}/retrained"))
        for label in (f"{METHOD}/k0.2", "sipp-det/k0.5")
    )
    cells = page.locator("#metrics tr").filter(has_text="Flipped predictions").locator("td").all_inner_texts()
    flips = [one["metrics"]["flips"], other["metrics"]["flips"]]
    assert list(map(float, cells)) == [*flips, flips[1] - flips[0]]
    assert page.locator("#layers tbody tr").count() == 3
    layer = page.locator("#layers tbody tr").first.locator("td").all_inner_texts()
    kept = [100 * model["layers"][0]["kept"] / model["layers"][0]["weights"] for model in (one, other)]
    assert [float(layer[2]), float(layer[6])] == [pytest.approx(share, abs=0.051) for share in kept]
    assert f"{one['flips']['count']} of 359 predictions differ" in page.locator("#flips > div").first.inner_text()


def test_flipped_images_are_shown_and_old_runs_say_why_not(page: Any, site: Path) -> None:
    go(page, site, "explorer.html")
    pick(page, f"{METHOD}, keep 0.2, retrained")
    model = page.evaluate(
        "window.SIPP_BENCH.models.find(m => m.method && m.method.startsWith('\"') && m.id.endsWith('k0.2/retrained'))"
    )
    base = page.evaluate("id => window.SIPP_BENCH.models.find(m => m.id === id)", model["base"])
    changed = sum(a != b for a, b in zip(model["flips"]["shown"], base["flips"]["shown"], strict=True))
    tiles = page.locator("#flips .tile")
    assert tiles.count() == changed > 0
    image = tiles.first.locator(".thumbnail")
    size = image.evaluate("""async tile => {
        const sheet = new Image();
        sheet.src = getComputedStyle(tile).backgroundImage.slice(5, -2);
        await sheet.decode();
        return [sheet.naturalWidth, parseInt(getComputedStyle(tile).backgroundSize), tile.clientWidth];
    }""")
    assert size == [160, 160 * 8, 64], "20 images of 8 pixels a row, shown eight times as large"
    page.select_option("#filter-run", label="old")
    pick(page, "sipp-det")
    assert "stored no predictions" in page.locator("#flips").inner_text()


def test_the_keyboard_reaches_everything(page: Any, site: Path) -> None:
    go(page, site, "explorer.html")
    page.keyboard.press("Tab")
    skip = page.locator(".skip")
    assert skip.evaluate("link => link === document.activeElement")
    assert skip.bounding_box()["x"] >= 0, "seen when it has the focus"
    assert skip.evaluate("link => getComputedStyle(link).outlineStyle") != "none"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    unnamed = page.evaluate("""
        [...document.querySelectorAll("main select, main input, main button, main [tabindex='0']")]
            .filter(each => !each.labels?.length && !each.textContent.trim() && !each.ariaLabel)
            .map(each => each.outerHTML)
    """)
    assert unnamed == []
    page.locator("#list summary").focus()
    page.keyboard.press("Enter")
    page.locator("#table button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#chosen").is_visible()


def test_dark_and_print_have_their_own_colours(page: Any, site: Path) -> None:
    go(page, site, "index.html")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(colour) != light
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
