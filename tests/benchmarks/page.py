"""From moving a slider of the interactive page to the new picture on the screen, in Chromium.

Needs a finished exploration whose data are at hand: EXPLORER_PAGE=RUNS/demo-1; left out without it,
or where no Chromium is installed.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from serving import service

from explorer import open_exploration

NUM_MOVES = 40
TARGET_MS = 300.0


def measure() -> dict[str, list[dict[str, Any]]]:
    """A new setting on the screen within 300 ms."""
    folder = os.environ.get("EXPLORER_PAGE")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if not folder or path is None:
        print("  left out: EXPLORER_PAGE names no exploration, or there is no Chromium")
        return {"page": []}
    from playwright.sync_api import sync_playwright

    exploration = Path(folder)
    with service(exploration.parent) as port, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(f"http://127.0.0.1:{port}/ui/")
        page.wait_for_selector(".pictures img", timeout=120_000)
        page.get_by_label("Exploration").click()
        page.get_by_role("option", name=exploration.name, exact=True).click()
        page.wait_for_timeout(5000)  # until it listens
        names = open_exploration(exploration.name, exploration.parent).points().conditionings
        rows = [{"slider": name, **moves(page, k)} for k, name in enumerate(names)]
        browser.close()
    return {"page": [{"exploration": exploration.name, **row} for row in rows]}


SLIDERS = "input[type=range]"


def moves(page: Any, number: int) -> dict[str, Any]:
    """Move a slider to and fro; time until numbers, mark and pictures are the new one's.

    The page itself keeps the time, from the event to the first frame after everything that is new
    is there and its pictures are decoded; a second later nothing more may have changed.
    """
    slider = page.locator(SLIDERS).nth(number)
    low, high = (float(slider.get_attribute(name)) for name in ("min", "max"))
    spent = []
    for share in (np.random.default_rng(number).permutation(NUM_MOVES) + 0.37) / NUM_MOVES:
        spent.append(slider.evaluate(MOVE, low + share * (high - low)))
        page.wait_for_timeout(1000)
        if not page.evaluate("() => window.isLast()"):
            raise RuntimeError(f"the page went on changing after {spent[-1]:.0f} ms")
    return {
        "median_ms": round(float(np.median(spent)), 1),
        "p95_ms": round(float(np.percentile(spent, 95)), 1),
        "worst_ms": round(max(spent), 1),
        "is_met": max(spent) <= TARGET_MS,
    }


# Strings are compared where they are: handing pictures to another process takes longer than
# drawing them.
MOVE = """async (e, v) => {
    const shown = () => [".facts", ".front .mark", ".pictures"].map(
        (name) => document.querySelector(name)?.outerHTML);
    const frame = () => new Promise(requestAnimationFrame);
    const before = shown();
    const start = performance.now();
    e.value = v;
    for (const kind of ["input", "change"]) e.dispatchEvent(new Event(kind, {bubbles: true}));
    while (shown().every((text, k) => text === before[k])) await frame();
    await frame();
    await Promise.all([...document.querySelectorAll(".pictures img")].map((i) => i.decode()));
    await frame();
    const spent = performance.now() - start, last = shown();
    window.isLast = () => shown().every((text, k) => text === last[k]);
    return spent;
}"""
