"""What people see of an exploration in MLflow's pages, in a browser without internet."""

import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from urllib.parse import urlsplit

import pytest

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
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    uri = f"sqlite:///{finished.runs_dir}/mlflow.db"
    process = explorer.start(
        "ui", "--port", port, "--runs-dir", finished.runs_dir, MLFLOW_TRACKING_URI=uri
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 180
    while not answers(f"{address}/health"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "MLflow's server does not answer"
        time.sleep(0.2)
    yield address, uri
    explorer.kill(process)


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except (OSError, urllib.error.URLError):
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
    assert "Dice on val" in frame.locator("svg.main-svg").all_inner_texts()[0]
    save(page, "mlflow-front")
    assert page.hosts <= {"127.0.0.1", None}


def test_scatter_of_child_runs_shows_the_front(page, mlflow_pages):
    address, uri = mlflow_pages
    experiment, _, front = tracked_runs(uri)
    asked = {"runs": json.dumps(front), "experiments": json.dumps([experiment])}
    page.goto(f"{address}/#/compare-runs?{urllib.parse.urlencode(asked)}")
    page.get_by_role("tab", name="Scatter Plot").click()
    for axis, name in (("X-axis", "macs"), ("Y-axis", "dice")):
        choose(page, axis, name)
    points = page.locator(".scatterlayer .points path")
    points.first.wait_for()
    assert points.count() == len(front)
    titles = page.locator("g.xtitle, g.ytitle").all_inner_texts()
    assert [title.strip() for title in titles] == ["macs", "dice"]
    save(page, "mlflow-scatter")


def choose(page, axis, name):
    """One of the quantities that MLflow offers for an axis."""
    label = page.get_by_text(f"{axis}:", exact=True)
    label.locator("xpath=following::*[@role='combobox' or @aria-haspopup][1]").click()
    page.get_by_role("option", name=name, exact=True).click()


def save(page, name):
    """A picture for people, into the folder that EXPLORER_PICTURES names."""
    folder = os.environ.get("EXPLORER_PICTURES")
    if folder:
        page.screenshot(path=f"{folder}/{name}.png")
