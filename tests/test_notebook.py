"""A notebook of ten cells, run by a kernel without a screen: what a user sees below each of them."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
CELLS = (
    """
import pyro, pyro.distributions as dist, torch
import ppl_vi
""",
    """
effects = torch.tensor([28.0, 8.0, -3.0, 7.0])
errors = torch.tensor([15.0, 10.0, 16.0, 11.0])

def schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
""",
    """
result = ppl_vi.compare(
    schools, ["AutoNormal", "AutoMultivariateNormal"], (effects, errors), num_steps=300, num_replicas=2, progress=True
)
""",
    "result",
    "print(result)",
    "result.verdict()",
    "result.plot()",
    'result["AutoNormal"]',
    "result.truth",
    'result.to_dataframe(by="latent")',
)


class Watching(NotebookClient):
    """Keeps the text of every display that a cell has updated: the outputs hold only the last."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.shown = []

    def process_message(self, msg, cell, cell_index):
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.shown.append(msg["content"]["data"].get("text/plain", ""))
        return super().process_message(msg, cell, cell_index)


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """The notebook after it was run, and the texts that were shown meanwhile."""
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in CELLS]
    found = nbformat.v4.new_notebook(cells=cells)
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    client = Watching(found, timeout=300, kernel_name="python3")
    client.resources = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
    client.execute(env=env)
    kept = os.environ.get("PPL_VI_KEEP_NOTEBOOK")  # to look at it
    if kept:
        nbformat.write(found, kept)
    return found, client.shown


def outputs(notebook, place):
    """The outputs of a cell."""
    return notebook[0].cells[place].outputs


def html(notebook, place):
    (output,) = outputs(notebook, place)
    return output["data"]["text/html"]


def test_it_runs_without_an_error_or_a_warning(notebook):
    for place, cell in enumerate(notebook[0].cells):
        for output in cell.outputs:
            assert output.output_type != "error"
            # tqdm, which Pyro imports, misses ipywidgets
            assert output.get("name") != "stderr" or (place == 0 and "TqdmWarning" in output.text), output.text


def test_progress_moves_and_leaves_nothing_behind(notebook):
    told = [text for text in notebook[1] if "AutoNormal: fitting" in text]
    assert told
    assert any("truth: " in text for text in notebook[1])
    (cell,) = outputs(notebook, 2)
    assert cell["data"]["text/plain"] == ""


def test_the_result_shows_verdict_table_and_figure(notebook):
    page = html(notebook, 3)
    assert page.count("<table") == 1
    assert page.count('<img alt="reverse KL') == 1
    assert "Write theta non-centred" in page
    (output,) = outputs(notebook, 3)
    assert output["data"]["text/plain"] == "<ModelComparison of schools: AutoNormal, AutoMultivariateNormal>"


def test_print_gives_the_text_of_the_table_and_nothing_beside_it(notebook):
    (output,) = outputs(notebook, 4)
    assert output.output_type == "stream"
    assert "Write theta non-centred" in " ".join(output.text.split())
    assert "worst 90%" in output.text
    assert len(output.text.splitlines()) > 10


def test_verdict_figures_fit_truth_and_frame_show_themselves(notebook):
    assert "Write theta non-centred" in html(notebook, 5)
    assert html(notebook, 6).count("<img ") == 4
    assert "Fit of AutoNormal to schools" in html(notebook, 7)
    assert "Truth of schools" in html(notebook, 8)
    assert "theta[3]" in html(notebook, 9)
