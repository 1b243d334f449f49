"""The interactive page: move a conditioning, and see what the network makes of an image change.

Mounted in the HTTP service's own app, it asks what the endpoints ask, in the same process, and
nothing of the internet.
"""

from __future__ import annotations

import html
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from explorer.answering import Explorations
from explorer.exploration import Exploration
from explorer.guarding import PAGE_PATH
from explorer.sliding import NUM_SAMPLES, View, Views
from search_spaces.errors import UserError
from search_spaces.space import CategoricalParameter, Config, IntParameter, Parameter

TITLE = "Pareto explorer"
STYLE = """
.pictures {display: flex; flex-wrap: wrap; gap: 12px}
.pictures figure {margin: 0; flex: 1 1 150px; max-width: 260px}
.pictures img {width: 100%; image-rendering: pixelated}
.pictures figcaption, .facts {font-size: 0.9em}
.facts td {padding: 2px 12px 2px 0; vertical-align: top}
.front {position: relative; max-width: 640px}
.front img {width: 100%}
.front .mark {position: absolute; width: 16px; height: 16px; margin: -8px 0 0 -8px;
  border: 3px solid #D55E00; border-radius: 50%}
footer {display: none !important}
"""


def mount(app: FastAPI, explorations: Explorations) -> FastAPI:
    """Add the page to an app, at `PAGE_PATH`; files are not taken, for nothing asks for any."""
    app.add_api_route(
        f"{PAGE_PATH}/gradio_api/upload",
        lambda: JSONResponse({"detail": "not found"}, 404),
        methods=["POST"],
        include_in_schema=False,
    )
    theme = gr.themes.Default(font=["sans-serif"], font_mono=["monospace"])  # none from elsewhere
    page = build_page(explorations)
    # a browser that keeps every answer keeps images of patients, and slows down with each
    mounted: FastAPI = gr.mount_gradio_app(
        app, page, path=PAGE_PATH, css=STYLE, theme=theme, run_history=False
    )
    return mounted


def build_page(explorations: Explorations) -> Any:
    """The page over the explorations of a runs directory."""
    views = Views(explorations)
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}")
        chosen = gr.Dropdown(label="Exploration", choices=[])
        page.load(lambda: _choices(views), outputs=chosen, queue=False)

        @gr.render(inputs=[chosen])  # type: ignore[untyped-decorator]  # gradio's
        def controls(exploration_id: str | None) -> None:
            if not exploration_id:
                gr.Markdown("No exploration has measured anything yet.")
                return
            try:
                _controls(views, explorations.get(exploration_id))
            except UserError as error:
                gr.Markdown(f"**{html.escape(exploration_id)}**: {html.escape(str(error))}")

    return page


def _choices(views: Views) -> Any:
    ids = views.ids()
    return gr.Dropdown(choices=ids, value=ids[0] if ids else None)


def _controls(views: Views, exploration: Exploration) -> None:
    """Sliders, pictures and the front of one exploration."""
    ids = views.samples(exploration).ids[:NUM_SAMPLES]
    start = views.best(exploration)
    front, budgets = views.front(exploration), views.budgets(exploration)
    with gr.Row():
        with gr.Column(scale=1):
            sample = gr.Dropdown(
                label="Sample (validation)",
                choices=[(name, row) for row, name in enumerate(ids)],
                value=0,
            )
            inputs = [_input(one, start[one.name]) for one in views.space(exploration)]
            budget = None
            if budgets is not None:
                low, high = (one / front.divisor for one in budgets)
                budget = gr.Slider(
                    math.ceil(1000 * low) / 1000,
                    high,
                    value=high,
                    step=0.001,
                    interactive=True,
                    label=f"Budget: {front.label}",
                    info="moves to the best setting within it",
                )
            facts = gr.HTML()
            command = gr.Textbox(label="Export this", interactive=False, buttons=["copy"])
            export = gr.Button("Make the file")
            file = gr.File(label="Network", visible=False)
        with gr.Column(scale=2):
            pictures = gr.HTML()
            figure = gr.HTML()
    names = [one.name for one in views.space(exploration)]

    def show(row: int, *values: Any) -> tuple[str, str, str, str]:
        try:
            view = views.view(exploration, row, dict(zip(names, values, strict=True)))
        except UserError as error:
            return html.escape(str(error)), "", "", ""
        return _pictures(view), _facts(view), _figure(front.png, view), view.command

    def answer(most: float) -> Any:
        setting = views.within(exploration, most * front.divisor)
        values = [setting[name] for name in names]
        return values if len(values) > 1 else values[0]

    outputs = [pictures, facts, figure, command]
    show_all: dict[str, Any] = {
        "fn": show,
        "inputs": [sample, *inputs],
        "outputs": outputs,
        "queue": False,
        "show_progress": "hidden",
        "trigger_mode": "always_last",
    }
    for one in [sample, *inputs]:
        one.change(**show_all)
    for output, content in zip(outputs, show(0, *(start[name] for name in names)), strict=True):
        output.value = content
    if budget is not None:
        budget.input(
            answer,
            inputs=budget,
            outputs=inputs,
            queue=False,
            show_progress="hidden",
            trigger_mode="always_last",
        )
    export.click(
        lambda *values: _exported(exploration, dict(zip(names, values, strict=True))),
        inputs=inputs,
        outputs=file,
    )


def _input(parameter: Parameter, value: Any) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return gr.Radio(
            list(parameter.choices), value=value, label=parameter.name, interactive=True
        )
    is_whole = isinstance(parameter, IntParameter)
    step = 1 if is_whole else (parameter.high - parameter.low) / 200
    # else what an answer may move is shown, but not for a hand to move
    return gr.Slider(
        parameter.low,
        parameter.high,
        value=value,
        step=step,
        label=parameter.name,
        interactive=True,
    )


def _exported(exploration: Exploration, setting: Config) -> Any:
    """The exported network as one file to take home."""
    folder = Path(tempfile.mkdtemp(prefix="explorer_"))
    try:
        exploration.export(exploration.at(setting), folder / "network")
        path = shutil.make_archive(str(folder / exploration.id), "zip", folder / "network")
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise gr.Error(str(error)) from error
    return gr.File(value=path, visible=True)


def _pictures(view: View) -> str:
    figures = (
        f'<figure><img alt="{html.escape(title)}" src="{url}">'
        f"<figcaption>{html.escape(title)}</figcaption></figure>"
        for title, url in view.pictures.items()
    )
    return f'<div class="pictures">{"".join(figures)}</div>'


def _facts(view: View) -> str:
    rows = (
        f"<tr><td>{html.escape(name)}</td><td><b>{html.escape(text)}</b></td></tr>"
        for name, text in view.facts.items()
    )
    return f'<table class="facts">{"".join(rows)}</table>'


def _figure(url: str, view: View) -> str:
    mark = ""
    if view.mark is not None:
        left, top = view.mark
        mark = f'<div class="mark" style="left: {left:.2f}%; top: {top:.2f}%"></div>'
    return f'<div class="front"><img alt="front" src="{url}">{mark}</div>'
