"""The page of inference.demo, in a browser as a person uses it, beside the run's own trainer."""

import importlib.util
import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from dassl.utils import mix_seed, seeded
from inference import demo
from inference.demo_model import DemoModel
from inference.load import load_run

from .runs import REPO, python_path, run

CHROMIUM = shutil.which("chromium")
FLAGS = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync""".split()
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
# Run at the start of the server: writes down whom it looks up or connects to.
WATCH = """
import sys
print("watched", file=open({file!r}, "a"))
def watch(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = args[1][0] if event == "socket.connect" else args[0]
        print(host, file=open({file!r}, "a"))
sys.addaudithook(watch)
"""


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [name for name in modules if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def softmax(logits: torch.Tensor) -> np.ndarray:
    raised = np.exp(logits.double().numpy() - logits.double().numpy().max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


class Own:
    """The run's own trainer with its data: what the page should show."""

    def __init__(self, folder: Path):
        self.trainer = load_run(folder)
        self.names = self.trainer.classnames
        self.items = self.trainer.dm.dataset.test
        batches = [batch["img"] for batch in self.trainer.dm.test_loader]
        self.images = torch.cat(batches)

    @torch.no_grad()
    def probabilities(self, i: int) -> np.ndarray:
        return softmax(self.trainer.model_inference(self.images[i : i + 1]))

    @torch.no_grad()
    def cloud(self, i: int, sigma: float, names: Sequence[str]) -> np.ndarray:
        """(20, C), by changing the parameters `names` themselves after the image is encoded."""
        model, learner = self.trainer.model, self.trainer.model.learner
        before = {name: p.clone() for name, p in learner.state_dict().items()}
        image, draws = model.image_features(self.images[i : i + 1]), []
        for draw in range(20):
            with seeded(mix_seed(draw)):
                for name in names:
                    p = getattr(learner, name)
                    p.copy_(before[name] + sigma * torch.randn_like(p))
            model.train(False)
            draws.append(softmax(model.logits(image, model.text_features())))
        learner.load_state_dict(before)
        model.train(False)
        return np.concatenate(draws)


# the model behind the page


def test_without_noise_it_is_the_runs_prediction_and_with_it_the_clouds(trained):
    own, model = Own(trained / "train"), DemoModel(trained / "train")
    for i in (0, 5, 33):
        got = model.probabilities(own.items[i].impath, own.names)
        assert got == pytest.approx(own.probabilities(i), abs=1e-6)
    text_prompts = ("ctx_att1", "ctx_att2", "ctx")  # in their order; ctx_att3 is in no prompt
    got = model.probabilities(own.items[5].impath, own.names, 0.3)
    assert got == pytest.approx(own.cloud(5, 0.3, text_prompts), abs=1e-5)
    assert got.std(axis=0).max() > 0.01
    again = model.probabilities(own.items[5].impath, own.names)
    assert again == pytest.approx(own.probabilities(5), abs=1e-6)


def test_other_names_are_a_test_on_new_classes(trained):
    own, model = Own(trained / "test"), DemoModel(trained / "train")
    got = model.probabilities(own.items[3].impath, own.names)
    assert got == pytest.approx(own.probabilities(3), abs=1e-6)
    assert model.of(own.names) is model.of(list(own.names))  # is not loaded again


def test_a_cloud_where_each_image_has_its_own_prompts(data, tmp_path):
    """CoCoOp's ctx, on which it adds what it makes of the image."""
    with redirect_stdout(io.StringIO()):
        assert run("CoCoOp", data, tmp_path / "run") == 0
    own, model = Own(tmp_path / "run"), DemoModel(tmp_path / "run")
    unsure = min(range(len(own.items)), key=lambda i: own.probabilities(i).max())
    got = model.probabilities(own.items[unsure].impath, own.names, 0.2)
    learner, draws = own.trainer.model.learner, []
    ctx = learner.ctx.detach().clone()
    for draw in range(20):
        with seeded(mix_seed(draw)), torch.no_grad():
            learner.ctx.copy_(ctx + 0.2 * torch.randn_like(ctx))
        draws.append(own.probabilities(unsure))
    assert got == pytest.approx(np.concatenate(draws), abs=1e-5)
    assert got.std(axis=0).max() > 1e-3


# the parts of the page


@needs("gradio")
@pytest.mark.parametrize(
    "text, names",
    [
        ("cat\ndog", ["cat", "dog"]),
        ("  cat \n\n polar   bear\n", ["cat", "polar bear"]),
        ("cat, dog , polar bear,", ["cat", "dog", "polar bear"]),
        ("crane, the bird\ncrane, the machine", ["crane, the bird", "crane, the machine"]),
        ("cat", ["cat"]),
    ],
)
def test_class_names(text, names):
    from inference.demo_page import class_names

    assert class_names(text) == names


@needs("gradio")
def test_the_figure_has_each_draw_of_the_most_probable_classes():
    from inference.demo_page import spread_figure

    names = [f"class ${i}_{{$" for i in range(12)]  # no formulas
    draws = np.random.default_rng(0).dirichlet(np.arange(1, 13) ** 2, size=20)
    figure = spread_figure(names, draws, 0.25)
    figure.savefig(io.BytesIO())
    [axes] = figure.axes
    order = np.argsort(-draws.mean(0))[:10]
    assert [label.get_text() for label in axes.get_yticklabels()] == [names[c] for c in order]
    *dots, means = (line.get_xdata() for line in axes.lines)
    assert np.array_equal(dots, draws[:, order].T)
    assert means == pytest.approx(draws.mean(0)[order])
    assert "20 draws" in axes.get_title() and "0.25" in axes.get_title()


@needs("gradio")
def test_a_method_without_vectors_has_a_sentence_for_a_slider(data, tmp_path, trained):
    from inference.demo_page import build_page

    assert run("ZeroshotCLIP", data, tmp_path / "run") == 0
    parts = {}
    for folder in (tmp_path / "run", trained / "train"):
        config = build_page(DemoModel(folder)).get_config_file()
        kinds = [part["type"] for part in config["components"]]
        parts[folder.name] = "slider" in kinds, "no vectors" in str(config["components"])
    assert parts == {"run": (False, True), "train": (True, False)}


# the program


def the_line(capsys: pytest.CaptureFixture) -> str:
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@needs("gradio")
def test_a_port_in_use(trained, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit) as left:
            demo.main([str(trained / "train"), "--port", str(port)])
    line = the_line(capsys)
    assert left.value.code == 2 and f"port {port}" in line and "--port" in line


@needs("gradio")
@pytest.mark.parametrize("port", ["-1", "70000"])
def test_a_port_that_cannot_be(port, trained, capsys):
    with pytest.raises(SystemExit) as left:
        demo.main([str(trained / "train"), "--port", port])
    assert left.value.code == 2 and f"port {port}" in the_line(capsys)


@needs("gradio")
def test_no_model(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        demo.main([str(tmp_path), "--port", "0"])
    assert left.value.code in (1, 2) and str(tmp_path) in the_line(capsys)


def test_without_gradio_it_says_how_to_get_it(trained, capsys, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as left:
        demo.main([str(trained / "train")])
    line = the_line(capsys)
    assert left.value.code == 1 and line.endswith(demo.INSTALL)
    assert (REPO / demo.INSTALL.split()[-1]).is_file()


# in a browser


@pytest.fixture
def server(trained, tmp_path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A page of the trained run, and its address; whom it asks stands in asked.txt."""
    asked = str(tmp_path / "asked.txt")
    (tmp_path / "sitecustomize.py").write_text(WATCH.format(file=asked))
    command = ["env", f"PYTHONPATH={python_path(tmp_path)}", sys.executable, "-m", "inference.demo"]
    process = subprocess.Popen(
        [*command, str(trained / "train"), "--port", "0"],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    line = process.stdout.readline()
    address = re.fullmatch(r"(http://127\.0\.0\.1:\d+) shows the page; Ctrl-C ends it\n", line)
    assert address, line + process.communicate()[0]
    yield process, address[1]
    process.kill()
    process.communicate()


class Browser:
    """A tab of Chromium, and what it asks for."""

    def __init__(self, playwright, folder: Path):
        start = playwright.chromium.launch_persistent_context
        view = {"width": 1200, "height": 1000}
        self.context = start(folder, executable_path=CHROMIUM, args=FLAGS, viewport=view)
        self.asked, self.said = [], []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page = self.context.new_page()
        self.page.on("websocket", lambda opened: self.asked.append(opened.url))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def wait_for(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, self.page.inner_text("body")
            self.page.wait_for_timeout(50)

    def bars(self) -> dict[str, int]:
        """Class -> percent."""
        text = "rows => rows.map(row => row.innerText.trim().split(/\\s*\\n\\s*/))"
        rows = self.page.eval_on_selector_all("#bars .confidence-set", text)
        return {name: int(percent.strip("%")) for name, percent in rows}

    def shows(self, names: Sequence[str], probabilities: np.ndarray) -> bool:
        """Whether the bars are the ten greatest of (C,) in percent."""
        bars = self.bars()
        sorted_ = sorted(zip(-probabilities, names, strict=True))[:10]
        fits = [abs(bars.get(name, -9) + 100 * p) <= 0.51 for p, name in sorted_ if p < -0.01]
        return len(bars) == min(10, len(names)) and all(fits) and [*bars][0] == sorted_[0][1]

    def message(self) -> str:
        found = self.page.locator("#message")
        return found.inner_text() if found.is_visible() else ""


@needs("gradio", "playwright")
@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_the_page_answers_to_itself_alone(server):
    """To no other site's page, and to none under another name (DNS rebinding)."""
    _, address = server
    host = urlsplit(address).netloc
    for headers, code in (
        ({}, 200),
        ({"Host": f"localhost:{host.rpartition(':')[2]}"}, 200),
        ({"Origin": f"http://{host}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 400),
    ):
        request = urllib.request.Request(f"{address}/config", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == code, headers
        except urllib.error.HTTPError as error:
            assert error.code == code, headers


def test_only_what_was_dropped_is_opened(tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    from inference.demo_page import answer

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    (tmp_path / "link.png").symlink_to("/etc/hostname")
    opened = []
    model = SimpleNamespace(probabilities=lambda path, *_: opened.append(path) or np.ones((1, 1)))
    for path in ("/etc/hostname", f"{tmp_path}/../x.png", f"{tmp_path}/link.png"):
        message, *_ = answer(model, {"path": path}, "cat")
        assert "no image that was dropped" in message["value"] and opened == []
    (tmp_path / "a.png").touch()
    assert answer(model, {"path": f"{tmp_path}/a.png"}, "cat")[1] == {"cat": 1} and opened


def test_the_page_in_a_browser(trained, server, tmp_path):
    from playwright.sync_api import sync_playwright

    own, new = Own(trained / "train"), Own(trained / "test")
    process, address = server
    (tmp_path / "letter.png").write_text("no image")
    with sync_playwright() as playwright:
        browser = Browser(playwright, tmp_path / "profile")
        page = browser.page
        page.goto(address)
        names, button = page.get_by_label("Classes"), page.get_by_role("button", name="Predict")
        assert names.input_value().splitlines() == own.names
        button.click()
        browser.wait_for(lambda: "Drop an image first" in browser.message())

        page.set_input_files("input[type=file]", own.items[5].impath)
        browser.wait_for(lambda: browser.shows(own.names, own.probabilities(5)[0]))
        assert not browser.message() and not page.locator("#spread").is_visible()

        page.locator("input[type=range]").fill("0.3")
        cloud = own.cloud(5, 0.3, ("ctx_att1", "ctx_att2", "ctx")).mean(axis=0)
        browser.wait_for(lambda: browser.shows(own.names, cloud))
        browser.wait_for(lambda: page.locator("#spread img").is_visible())
        page.screenshot(path=tmp_path / "cloud.png", full_page=True)

        page.locator("input[type=range]").fill("0")
        browser.wait_for(lambda: not page.locator("#spread").is_visible())
        names.fill(", ".join(new.names))
        button.click()
        others = new.trainer.model_inference(own.images[5:6]).detach()
        browser.wait_for(lambda: browser.shows(new.names, softmax(others)[0]))

        for text, says in (
            ("cat, dog, cat", "class 'cat' is given twice"),
            (" ", "Type the names"),
        ):
            names.fill(text)
            button.click()
            browser.wait_for(lambda says=says: says in browser.message())
            assert not browser.bars()
        names.fill("red circle, blue square")
        page.get_by_label("Clear").or_(page.get_by_label("Remove Image")).first.click()
        browser.wait_for(lambda: "Drop an image first" in browser.message())
        page.set_input_files("input[type=file]", tmp_path / "letter.png")
        browser.wait_for(lambda: "Cannot read the image letter.png" in browser.message())
        page.screenshot(path=tmp_path / "message.png", full_page=True)

        assert not browser.said
        process.send_signal(signal.SIGINT)  # with the page open
        rest, _ = process.communicate(timeout=60)
        assert (process.returncode, rest) == (0, "\nstopped\n")
        browser.context.close()
    assert len(browser.asked) > 20
    hosts = {urlsplit(url).netloc for url in browser.asked if not url.startswith("data:")}
    assert hosts <= {urlsplit(address).netloc, ""}, hosts
    asked = (tmp_path / "asked.txt").read_text().split()
    assert set(asked) - {"127.0.0.1"} == {"watched"}, asked
