"""`make lab` in a browser: the README that it opens on, and notebooks run from there to the end."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import papermill
import pytest

from workbook import steps
from workbook.config import load_experiment, read_yaml
from workbook.runs import Run
from workbook.system.folders import ROOT

pytestmark = pytest.mark.browser

TO_OPEN = ("01_data_exploration", "05_view_heatmaps")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SCREENSHOTS = ROOT / "build/browser"
SMOKE = read_yaml(ROOT / "tests/smoke/experiment.yaml")
#: Milliseconds; a loaded machine needs them, an idle one takes seconds.
TO_LOAD, TO_RUN = 60_000, 240_000

SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden)"
#: A cell that waits has a star, one that ran a number; after an error the rest have neither.
ENDED = f"""() => {{
    const panel = document.querySelector("{SHOWN}");
    const prompts = [...panel.querySelectorAll(".jp-CodeCell .jp-InputPrompt")];
    const words = prompts.map(prompt => prompt.textContent).join();
    const kernel = panel.querySelector(".jp-Notebook-ExecutionIndicator");
    return kernel.dataset.status === "idle" && /\\d/.test(words) && !words.includes("*");
}}"""
#: Of each image, how many colours it has; 0 if it did not load.
COLOURS = """images => Promise.all(images.map(async image => {
    await image.decode().catch(() => null);
    if (!image.naturalWidth) return 0;
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size;
}))"""


@pytest.fixture(scope="module")
def browser():
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    named = os.environ.get("GAITLIB_BROWSER")
    found = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed, and GAITLIB_BROWSER names none")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def workspace(browser, tmp_path_factory):
    """A finished run, and the notebooks: those to open have its parameters, and no outputs yet."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GAITLIB_WORKSPACE", str(folder))
        run = Run(SMOKE["run"], load_experiment(None, SMOKE["overrides"]))
        for stage in ("baseline", "geta"):
            steps.run_stage(run, stage)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    for name in TO_OPEN:
        path = folder / "notebooks" / f"{name}.ipynb"
        papermill.execute_notebook(path, path, SMOKE, prepare_only=True, progress_bar=False)
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    return folder


@pytest.fixture
def lab(workspace, tmp_path):
    """The address of a server that `make lab` started, with nothing of the user's around it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    environment = os.environ | {
        "GAITLIB_WORKSPACE": str(workspace),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "JUPYTERLAB_WORKSPACES_DIR": str(tmp_path / "workspaces"),
        "JUPYTER_TOKEN": token,
    }
    environment.pop("MPLBACKEND", None)  # the kernel draws inline
    options = f"--no-browser --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0"
    # -o: the environment that runs this test is the one to show
    command = ["make", "-o", ".venv/.ready", "lab", f"BIN={Path(sys.executable).parent}"]
    command.append(f"LAB={options} --ServerApp.root_dir={workspace}")
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/api", server, tmp_path / "lab.log")
        yield f"http://127.0.0.1:{port}/?token={token}"
    finally:
        _stop(server)


def _wait_until_up(address: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + TO_LOAD / 1000
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer:\n{log.read_text()}")


def _stop(server: subprocess.Popen) -> None:
    """Ask for a shutdown, which ends the kernels too; kernels of a killed server end themselves."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is None:
            os.killpg(server.pid, number)
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                continue


@pytest.fixture
def complaints():
    """What the browser's console and the server's answers complain of."""
    return []


@pytest.fixture
def page(browser, lab, complaints, request):
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(TO_LOAD)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    page.on("response", lambda got: got.status >= 400 and complaints.append(got.url))
    page.goto(lab)
    page.locator(".jp-MarkdownViewer h1").wait_for()
    yield page
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    name = request.node.name.rpartition("[")[2].rstrip("]")
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
    page.close()


def test_make_lab_opens_on_the_rendered_readme_which_leads_to_every_notebook(page, complaints):
    readme = page.locator(".jp-MarkdownViewer")
    first_line = (ROOT / "notebooks/README.md").read_text().splitlines()[0]
    assert f"# {readme.locator('h1').text_content()}".startswith(first_line)
    addresses = readme.locator("a[href*='/files/']").evaluate_all("links => links.map(a => a.href)")
    paths = [unquote(urlsplit(link).path).removeprefix("/files/") for link in addresses]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert notebooks <= set(paths)
    assert complaints == []


@pytest.mark.parametrize("name", TO_OPEN)
def test_a_notebook_opened_from_the_readme_runs_and_shows_its_figures(name, page, complaints):
    page.locator(f".jp-MarkdownViewer a[href*='{name}']").click()
    panel = page.locator(SHOWN)
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()  # else JupyterLab asks for a kernel
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(ENDED, timeout=TO_RUN)

    warnings_and_tracebacks = panel.locator("[data-mime-type$=stderr]").all_text_contents()
    assert warnings_and_tracebacks == []
    prompts = panel.locator(".jp-CodeCell .jp-InputPrompt").all_text_contents()
    assert prompts == [f"[{count}]:" for count in range(1, len(prompts) + 1)]

    committed = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", 4)
    outputs = [output for cell in committed.cells for output in cell.get("outputs", ())]
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    colours = panel.locator(".jp-OutputArea-output img").evaluate_all(COLOURS)
    assert len(colours) == figures and min(colours) > 1, colours
    assert complaints == []

    cells = panel.locator(".jp-WindowedPanel-outer")  # the screenshot shows all of them
    height = 200 + cells.evaluate("cells => cells.scrollHeight")
    page.set_viewport_size({"width": 1400, "height": height})
    cells.evaluate("cells => { cells.scrollTop = 0; }")
