"""What people see of an exploration, in MLflow's pages and in ours, in a browser."""

import json
import os
import shutil
import time
import urllib.parse
import urllib.request
from urllib.parse import urlsplit

import pytest

from explorer import Bound, open_exploration
from explorer.quantities import format_quantity
from tests.conftest import free_port

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PAGE_MS = 60_000  # for a page on a busy machine


@pytest.fixture(scope="module")
def browser():
    """Chromium; skips where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium or google-chrome on the path")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page that notes which hosts it asks."""
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(PAGE_MS)
    page.hosts = set()
    page.on("request", lambda request: page.hosts.add(urlsplit(request.url).hostname))
    yield page
    page.close()


@pytest.fixture(scope="module")
def mlflow_pages(explorer, finished):
    """`explorer ui` on the exploration that all tests share."""
    port = free_port()
    uri = f"sqlite:///{finished.runs_dir}/mlflow.db"
    process = explorer.start(
        "ui", "--port", port, "--runs-dir", finished.runs_dir, MLFLOW_TRACKING_URI=uri
    )
    address = f"http://127.0.0.1:{port}"
    wait_for_answer(process, f"{address}/health")
    yield address, uri
    explorer.kill(process)


def wait_for_answer(process, url):
    deadline = time.monotonic() + 180
    while not answers(url):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{url} does not answer"
        time.sleep(0.2)


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def tracked_runs(uri):
    """The experiment's id, the parent run, and the child runs of the front."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "explorations"]
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    front = [run.info.run_id for run in runs if run.data.tags.get("frontier") == "true"]
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    return experiment.experiment_id, parent.info.run_id, front


def test_artifact_page_shows_the_interactive_front(page, mlflow_pages):
    address, uri = mlflow_pages
    experiment, parent, _ = tracked_runs(uri)
    page.goto(f"{address}/#/experiments/{experiment}/runs/{parent}/artifacts/frontier.html")
    page.wait_for_selector("iframe")
    frame = page.frame_locator("iframe")
    points = frame.locator(".scatterlayer .points path:visible")
    points.first.wait_for()
    assert points.count() >= 5
    assert points.first.bounding_box()["width"] > 1
    assert "Dice on val" in "".join(frame.locator("svg.main-svg").all_text_contents())
    save(page, "mlflow-front")
    assert page.hosts <= {"127.0.0.1", None}


def test_scatter_of_child_runs_shows_the_front(page, mlflow_pages, finished):
    address, uri = mlflow_pages
    experiment, _, front = tracked_runs(uri)
    asked = {"runs": json.dumps(front), "experiments": json.dumps([experiment])}
    page.goto(f"{address}/#/compare-runs?{urllib.parse.urlencode(asked)}")
    page.get_by_role("tab", name="Scatter Plot").click()
    for axis, name in (("X-axis", "macs"), ("Y-axis", "dice")):
        choose(page, axis, name)
    page.wait_for_function(
        "() => [...document.querySelectorAll('g.g-xtitle, g.g-ytitle')]"
        ".map(e => e.textContent.trim()).join() === 'macs,dice'"
    )
    drawn = page.evaluate(  # on a canvas: what plotly was given to draw
        "() => document.querySelector('.js-plotly-plot').data.map(t => [[...t.x], [...t.y]])"
    )
    points = {(float(x), float(y)) for xs, ys in drawn for x, y in zip(xs, ys, strict=True)}
    expected = {(one.costs["macs"], one.metrics["dice"]) for one in front_points(finished)}
    assert expected <= points
    assert len(front) >= len(expected)
    save(page, "mlflow-scatter")


def choose(page, axis, name):
    """One of the quantities that MLflow offers for an axis."""
    label = page.get_by_text(f"{axis}:", exact=True)
    label.locator("xpath=following::*[@role='combobox' or @aria-haspopup][1]").click()
    page.get_by_role("option", name=name, exact=True).click()


def front_points(finished):
    return open_exploration(finished.id, finished.runs_dir).frontier()


# our own page


@pytest.fixture(scope="module")
def learned(explorer, tmp_path_factory):
    """An exploration whose model has learned enough for Dice to follow phi."""
    runs_dir = tmp_path_factory.mktemp("learned")
    changes = ("train.epochs=40", "baselines=[]", "explore.num_points=11", "tracking=false")
    sets = [part for change in changes for part in ("--set", change)]
    ended = explorer("run", "demo", *sets, "--runs-dir", runs_dir)
    assert ended.code == 0, ended.stderr
    return open_exploration("demo-1", runs_dir)


@pytest.fixture(scope="module")
def served_pages(explorer, learned, tmp_path_factory):
    """`explorer serve` with a token; its address, and credentials as a browser asks for them."""
    token_file = tmp_path_factory.mktemp("secret") / "token"
    token_file.write_text("0123456789abcdef")
    token_file.chmod(0o600)
    port = free_port()
    arguments = ("--runs-dir", learned.folder.parent, "--token-file", token_file)
    process = explorer.start("serve", "--port", port, *arguments)
    wait_for_answer(process, f"http://127.0.0.1:{port}/ready")
    yield f"http://127.0.0.1:{port}", {"username": "anybody", "password": "0123456789abcdef"}
    explorer.kill(process)


@pytest.fixture
def slider_page(browser, served_pages):
    address, credentials = served_pages
    context = browser.new_context(
        http_credentials=credentials, viewport={"width": 1280, "height": 900}
    )
    page = context.new_page()
    page.set_default_timeout(PAGE_MS)
    page.hosts = set()
    page.on("request", lambda request: page.hosts.add(urlsplit(request.url).hostname))
    page.goto(f"{address}/ui/")
    page.wait_for_selector(".pictures img")
    yield page
    context.close()


def facts(page):
    """Names and values of the table beside the pictures."""
    rows = page.locator(".facts tr").all_inner_texts()
    return dict(row.split("\t", 1) for row in rows)


def move(page, number, share):
    """A slider, with the mouse, to a share of its range; a page needs a moment to listen."""
    before = page.locator(".facts").inner_text()
    slider = page.locator("input[type=range]").nth(number)
    slider.scroll_into_view_if_needed()
    deadline = time.monotonic() + 60
    while page.locator(".facts").inner_text() == before:
        assert time.monotonic() < deadline, f"slider {number} changes nothing"
        box = slider.bounding_box()
        # a little beside it first: where it stands already, a press changes nothing
        for x in (abs(share - 0.1), share):
            page.mouse.click(box["x"] + 1 + x * (box["width"] - 2), box["y"] + box["height"] / 2)
        page.wait_for_timeout(1000)
    return float(slider.input_value())


def test_moving_phi_changes_picture_dice_and_macs(slider_page, learned):
    page = slider_page
    move(page, 0, 0.1)
    network = page.locator('.pictures img[alt="network"]')
    low, low_facts = network.get_attribute("src"), facts(page)
    low_mark = page.locator(".front .mark").get_attribute("style")
    assert move(page, 0, 1.0) == 0.5
    high_facts = facts(page)
    assert network.get_attribute("src") != low
    assert page.locator(".front .mark").get_attribute("style") != low_mark
    for name in ("MACs", "dice of this sample", "dice on validation"):
        assert high_facts[name] != low_facts[name]
    point = learned.at({"phi": 0.5})
    assert high_facts["MACs"] == format_quantity(point.costs["macs"], digits=4)
    assert high_facts["dice on validation"].startswith(f"{point.metrics['dice']:.4f}")
    export = page.locator("textarea").first.input_value()
    assert export == f"explorer export {learned.id} --at phi=0.5 --output network/"
    save(page, "page")
    assert page.hosts == {"127.0.0.1"}
    kept = page.evaluate("() => Object.values({...localStorage, ...sessionStorage}).join('')")
    assert "data:image" not in kept


def test_budget_moves_to_the_best_setting_within_it(slider_page, learned):
    page = slider_page
    costs = learned.points().values("macs")
    unit = float(page.locator("input[type=range]").nth(1).get_attribute("max")) / costs.max()
    move(page, 0, 1.0)
    budget = move(page, 1, 0.5) / unit
    answer = learned.query([Bound("macs", "max", budget)]).point
    phi = page.locator("input[type=range]").first
    assert float(phi.input_value()) == pytest.approx(answer.conditioning["phi"], abs=1e-6)
    assert facts(page)["on the front"].startswith("yes")


def test_page_asks_for_the_token(browser, served_pages):
    address, _ = served_pages
    for credentials in (None, {"username": "anybody", "password": "wrong"}):
        context = browser.new_context(http_credentials=credentials)
        response = context.request.get(f"{address}/ui/")
        assert response.status == 401
        assert response.headers["www-authenticate"].startswith("Basic")
        context.close()


def save(page, name):
    """A picture for people, into the folder that EXPLORER_PICTURES names."""
    folder = os.environ.get("EXPLORER_PICTURES")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")
