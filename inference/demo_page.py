"""The page of inference.demo: its parts in Gradio, and what they show."""

import html
import os

import gradio as gr
import numpy as np
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from fastapi.responses import PlainTextResponse
from matplotlib.figure import Figure
from starlette.types import ASGIApp, Receive, Scope, Send

from dassl.utils import Failure, UsageError

from .demo_model import DRAWS, DemoModel

SHOWN = 10  # classes
SIGMA_MAX = 0.5
# Gradio's own theme, with fonts that every system has.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
CSS = "#message { color: #b91c1c; font-size: 1.1em }"
NAMES = "one a line, or all on one line with commas between"
LABEL = "σ of the noise on the prompts"
SIGMA = f"0: the prompts as learned; above it the average over {DRAWS} draws of noise"
NO_SIGMA = "{} learns no vectors that are its text prompts, so there is no cloud to look at here."


def page_server(model: DemoModel, host: str) -> uvicorn.Server:
    """What serves the page; Gradio's own `launch` would also look for ways out to the world."""
    app = gr.mount_gradio_app(
        FastAPI(),
        build_page(model),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        theme=THEME,
        css=CSS,
    )
    # No other site's page may ask this one, also by a name that leads to this machine.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[host, "localhost"])
    app.add_middleware(OwnSite)
    # An open page keeps a connection, which Ctrl-C should not wait for.
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))


class OwnSite:
    """Answers 403 to what a page of another address has a browser ask."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, app = dict(scope.get("headers", ())), self.app
        if headers.get(b"origin", own := b"http://" + headers.get(b"host", b"")) != own:
            app = PlainTextResponse("this page answers to itself alone", 403)
        await app(scope, receive, send)


def build_page(model: DemoModel) -> gr.Blocks:
    """The page's parts, and what happens when they are used."""
    cfg = model.trainer.cfg
    method = cfg.TRAINER.NAME
    of = f"for {cfg.DATASET.NAME}, with CLIP {cfg.MODEL.BACKBONE.NAME}"
    with gr.Blocks(title=f"{method} on {cfg.DATASET.NAME}", analytics_enabled=False) as page:
        gr.HTML(f"<h1>{html.escape(method)}</h1>{html.escape(of)}")
        with gr.Row():
            with gr.Column():
                image = gr.Image(label="Image", sources=["upload", "clipboard"], height=300)
                text = "\n".join(model.trainer.classnames)
                names = gr.Textbox(text, label="Classes", info=NAMES, lines=5, max_lines=10)
                given = [image, names]
                if model.movable:
                    sigma = gr.Slider(0, SIGMA_MAX, 0, step=0.005, label=LABEL, info=SIGMA)
                    given.append(sigma)
                else:
                    gr.HTML(html.escape(NO_SIGMA.format(method)))
                button = gr.Button("Predict", variant="primary")
            with gr.Column():
                message = gr.HTML(visible=False, elem_id="message")
                bars = gr.Label(label="Probabilities", num_top_classes=SHOWN, elem_id="bars")
                spread = gr.Plot(show_label=False, visible=False, elem_id="spread")
        gr.on(
            [button.click, image.change, *([sigma.change] if model.movable else [])],
            lambda *values: answer(model, *values),
            given,
            [message, bars, spread],
            show_progress_on=[bars],
            preprocess=False,  # Gradio's reading of the image would fail before our message
            trigger_mode="always_last",
            api_visibility="private",
        )
    return page


def answer(model: DemoModel, image: dict | None, text: str, sigma: float | None = 0) -> tuple:
    """Values of message, bars and spread: either the message or the others."""
    try:
        if image is None:
            raise UsageError("Drop an image first.")
        names = class_names(text)
        try:
            draws = model.probabilities(uploaded(image["path"]), names, sigma or 0)
        except Failure as error:
            # The upload's path means nothing to who looks at the page.
            file = image.get("orig_name") or "the image"
            raise UsageError(str(error).replace(image["path"], file)) from error
    except Failure as error:
        line = gr.update(value=html.escape(str(error)), visible=True)
        return line, None, gr.update(visible=False)
    means = dict(zip(names, draws.mean(axis=0).tolist(), strict=True))
    figure = spread_figure(names, draws, sigma) if sigma else None
    return gr.update(visible=False), means, gr.update(value=figure, visible=bool(sigma))


def uploaded(path: str) -> str:
    """The path, if it is an upload's: the page could be asked for any file. Raises: UsageError."""
    uploads = os.path.realpath(os.environ["GRADIO_TEMP_DIR"])
    if os.path.commonpath([uploads, os.path.realpath(path)]) != uploads:
        raise UsageError("That is no image that was dropped here.")
    return path


def class_names(text: str) -> list[str]:
    """Names one a line, or all on one line with commas between. Raises: UsageError."""
    lines = text.strip().splitlines()
    parts = lines[0].split(",") if len(lines) == 1 else lines
    names = [name for part in parts if (name := " ".join(part.split()))]
    if not names:
        raise UsageError("Type the names of the classes first.")
    return names


def spread_figure(names: list[str], draws: np.ndarray, sigma: float) -> Figure:
    """Each draw's probability (S, C) of the SHOWN most probable classes, and their means."""
    means = draws.mean(axis=0)
    top = np.argsort(-means, kind="stable")[:SHOWN]
    figure = Figure(figsize=(6.4, 1.3 + 0.32 * len(top)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # inches
    axes = figure.subplots()
    for y, c in enumerate(top):
        axes.plot(draws[:, c], np.full(len(draws), y), "o", color="C0", alpha=0.35, mew=0)
    axes.plot(means[top], range(len(top)), "|", color="black", ms=14, mew=2, label="mean")
    labels = [name if len(name) <= 32 else name[:31] + "…" for name in (names[c] for c in top)]
    axes.set_yticks(range(len(top)), labels, parse_math=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(top) - 0.5, -0.5), xlabel="probability")
    axes.set_title(f"{len(draws)} draws of the prompts at σ = {sigma:g}; |: their mean")
    axes.grid(axis="x", alpha=0.3)
    return figure
