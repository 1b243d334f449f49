"""The interactive page: what it shows, and that it asks nobody for anything."""

import re
from pathlib import Path

from explorer import pages


def test_page_loads_nothing_from_elsewhere_and_tells_each_point(points, tmp_path: Path) -> None:
    path = tmp_path / "frontier.html"
    page = pages.frontier_html(points, split="val", main="sshn", title="Cells & <nuclei>")
    pages.write_html(page, path)
    written = path.read_text(encoding="utf-8")
    assert not re.findall(r"<(?:script|link|img)[^>]*(?:src|href)\s*=", written)
    assert len(written) > 3_000_000  # plotly.js itself
    for said in ("0.9100 \\u00b1 0.0100", "Dice on test: 0.8900", "1.3 GMAC", "mean of 3 seeds"):
        assert said in written
    assert "<nuclei>" not in written


def test_page_draws_and_names_categories(points_of_modes) -> None:
    page = pages.frontier_html(points_of_modes, split="val", main="sshn", title="Modes")
    for said in ("sshn, nearest (3 seeds)", "\u03c6 0.2, nearest", '"dash":"dash"'):
        assert said.encode("ascii", "backslashreplace").decode() in page
    alone = pages.frontier_html(
        points_of_modes, conditioning=None, split="val", main="sshn", title="Modes"
    )
    assert '"xaxis2"' in page
    assert '"xaxis2":{"anchor"' not in alone
