"""Facts about the report page."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from jimjax.io.errors import InputError
from jimjax.report import ReportData, embedding, read_history, render, write_report

SECTIONS = (
    "summary", "run", "slices", "training", "clusters", "confusion", "features", "resolution",
    "poses", "caveats",
)  # fmt: skip
VOID = {"meta", "img", "br", "hr", "link", "input", "use", "path"}
ATTACK = '<script>alert("1")</script>'


class _Page(HTMLParser):
    """Collects what the tests ask for and checks that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses = [], [], [], []
        self.images, self.charts, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append(tag)
        self.ids += [found["id"]] if tag == "section" else []
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "data")]
        self.images += [found] if tag == "img" else []
        self.charts += [found.get("aria-label")] if tag == "svg" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] != "style":
            self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def report() -> ReportData:
    generator = np.random.default_rng(0)
    volumes = generator.normal(size=(2, 8, 8, 8))
    labels = np.array([0] * 6 + [1] * 4)
    history = [
        {"phase": "joint", "epoch": step // 5, "step": step, "loss": 1 / (1 + step), "note": "x"}
        for step in range(20)
    ]
    history.append({"phase": "eval", "epoch": 3, "step": 19, "clustering_accuracy": 0.5})
    return ReportData(
        title="Four molecules",
        config_text="[train]\nsteps = 20\n",
        provenance={"command": "jimjax train x.toml", "date": "2026-01-02", "device": "cpu"},
        metrics={
            "clustering_accuracy": 0.9,
            "rotation_error_mean": 0.5,
            "rotation_error_std": 0.25,
            "rotation_error_median_degrees": 12.34,
            "num_pairs": 12345.0,
        },
        baselines={"untrained": {"clustering_accuracy": 0.3}},
        history=history,
        example_volumes={0: volumes[0], 1: volumes[1]},
        averages=[volumes[1], None],
        fsc=[np.array([1.0, 0.9, 0.5, 0.1, 0.0]), None],
        features=generator.normal(size=(10, 5)),
        predicted_labels=labels,
        true_labels=1 - labels,
        rotation_errors=generator.uniform(0, 2.8, 200),
        voxel_size=10.0,
        caveats=["Simulated particles only."],
    )


@pytest.fixture(scope="module")
def text(report) -> str:
    return render(report)


@pytest.fixture(scope="module")
def page(text) -> _Page:
    return _Page(text)


def test_every_section_is_there_once_and_in_order(page):
    assert tuple(page.ids) == SECTIONS


def test_contents_point_to_the_sections(page):
    links = [address for address in page.addresses if address.startswith("#")]
    assert [link for link in links if link[1:] in SECTIONS] == [f"#{name}" for name in SECTIONS]


def test_the_page_loads_nothing(text, page):
    assert not re.search(r"https?:|@import|url\((?!#)|//[a-z]+\.", text)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert all(address.startswith(("#", "data:image/png")) for address in page.addresses)


def test_every_picture_has_a_text_instead(page):
    # One row of three slices for each of two particles and one average.
    assert len(page.images) == 9
    assert all("slice" in image["alt"] for image in page.images)
    # loss, accuracy, features in two ways, FSC, pose errors
    assert len(set(page.charts)) == 6
    assert all(page.charts)


def test_numbers_stand_beside_those_of_the_baseline(page):
    assert "Clustering accuracy 0.900 0.300" in page.text
    assert "0.500 ± 0.250 -" in page.text
    assert "Rotation error, median (degrees) 12.3" in page.text
    assert "Pairs of particles compared 12,345" in page.text


def test_a_constant_answer_is_named_as_the_bar(page):
    assert "Putting every particle into one class would score 0.600" in page.text


def test_what_was_run_is_shown(page):
    assert "command jimjax train x.toml" in page.text
    assert "steps = 20" in page.text


def test_cluster_sizes_and_an_empty_class_are_listed(report):
    sizes = _Page(render(replace(report, averages=[None] * 3, fsc=()))).text
    assert "class 1 6 60.0% class 2 4 40.0% class 3 0 0.0%" in sizes


def test_confusion_puts_the_matched_classes_on_the_diagonal(page):
    # All of true class 1 was predicted as 2 and the other way round.
    assert "predicted 2 predicted 1 true 1 4 0 true 2 0 6" in page.text


def test_resolution_is_read_off_the_curve(page):
    # Between shells 2 (0.5) and 3 (0.1) of 8 voxels of 10 A: 80 / (2 + 0.357 / 0.4) = 27.7.
    assert "class 1 27.7 first crossing of 0.143" in page.text
    assert "class 2 - no two half maps" in page.text


def test_nyquist_is_said_plainly(report):
    flat = render(replace(report, fsc=[np.ones(5), None]))
    assert "≤ 20.0 at or below Nyquist" in _Page(flat).text


def test_chance_level_poses_are_called_so(report):
    at_chance = _Page(render(replace(report, rotation_errors=np.full(100, 2.4)))).text
    assert "these poses carry no information" in at_chance
    good = _Page(render(replace(report, rotation_errors=np.full(100, 0.3)))).text
    assert "these poses carry no information" not in good


def test_given_caveats_stand_before_the_standing_ones(page):
    assert page.text.index("Simulated particles only.") < page.text.index("gold standard")


def test_an_empty_report_says_what_is_missing():
    empty = _Page(render(ReportData()))
    assert tuple(empty.ids) == SECTIONS
    assert empty.images == empty.charts == []
    assert "No training history was given." in empty.text
    assert "without a known truth there is nothing to compare with" in empty.text


def test_text_from_outside_is_escaped_everywhere(report):
    hostile = replace(
        report,
        title=ATTACK,
        config_text=ATTACK,
        provenance={ATTACK: ATTACK, "date": ATTACK},
        metrics={ATTACK: 1.0},
        baselines={ATTACK: {ATTACK: 2.0}},
        history=[{"phase": ATTACK, "step": s, ATTACK: 1.0, r"$\bad$": 2.0} for s in range(3)],
        caveats=[ATTACK],
    )
    text = render(hostile)
    page = _Page(text)
    assert "<script" not in text
    assert "script" not in page.tags
    assert page.text.count("alert(") >= 8


def test_the_same_data_give_the_same_page(report, text):
    assert render(report) == text


def test_steps_repeated_after_a_resume_are_drawn_once(report):
    steps = [0, 1, 2, 3, 2, 3, 4]
    lines = [{"phase": "a", "epoch": 0, "step": s, "loss": float(i)} for i, s in enumerate(steps)]
    once = [
        {"phase": "a", "epoch": 0, "step": s, "loss": v} for s, v in enumerate([0.0, 1, 4, 5, 6])
    ]
    assert render(replace(report, history=lines)) == render(replace(report, history=once))


def test_steps_that_start_again_are_counted_on(report):
    lines = [{"epoch": e, "step": s, "loss": e + s / 9} for e in range(2) for s in range(3)]
    counted = [{"loss": e + s / 9} for e in range(2) for s in range(3)]
    assert render(replace(report, history=lines)) == render(replace(report, history=counted))


def test_a_history_with_nan_and_a_long_one_are_drawn(report):
    lines = [{"step": s, "loss": float("nan") if s == 5 else 1.0 + s} for s in range(5000)]
    page = _Page(render(replace(report, history=lines)))
    assert "loss over training, by step" in page.charts


def test_many_particles_are_thinned_and_it_is_said(report, monkeypatch):
    monkeypatch.setattr(embedding, "MAX_POINTS", 200)
    num = 3000
    labels = np.arange(num) % 2
    many = replace(
        report,
        features=np.random.default_rng(0).normal(size=(num, 3)),
        predicted_labels=labels,
        true_labels=None,
    )
    assert "200 of 3,000 particles. Colour is the predicted class." in _Page(render(many)).text


def test_without_a_voxel_size_lengths_are_in_voxels(report):
    page = _Page(render(replace(report, voxel_size=None)))
    assert "resolution (voxels)" in page.text
    assert "2 voxels, box 8 voxels" in page.text
    assert "Å" not in page.text


def test_first_row_of_an_image_is_drawn_at_the_bottom(report):
    from base64 import b64decode
    from io import BytesIO

    from matplotlib.image import imread

    volume = np.zeros((8, 8, 8))
    volume[4, 0, :] = 1.0  # z = 4 (the centre), y = 0: white in the bottom row of xy
    volume[0, 4, :] = 1.0  # y = 4 (the centre), z = 0: white in the bottom row of xz
    page = _Page(render(ReportData(averages=[volume])))
    pictures = [
        imread(BytesIO(b64decode(image["src"].split(",")[1])))[..., 0] for image in page.images
    ]
    assert pictures[0][-1].min() > 0.9 > 0.1 > pictures[0][0].max()
    assert pictures[1][-1].min() > 0.9 > 0.1 > pictures[1][0].max()


def test_history_is_read_line_by_line_without_a_cut_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert read_history(path) == [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("line", ["{broken", "[1, 2]"])
def test_a_broken_history_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: "):
        read_history(path)


def test_written_report_shows_the_history_of_the_run_folder(tmp_path):
    lines = [json.dumps({"phase": "joint", "step": s, "my_loss": 1.0 / (s + 1)}) for s in range(4)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    write_report(ReportData(), tmp_path / "report.html", run_dir=tmp_path)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.charts == ["my_loss over training, by step"]
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "report.html"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"true_labels": np.zeros(3, int)}, "one entry per particle"),
        ({"averages": [np.zeros((4, 4, 5))]}, r"maps must be cubic \(z, y, x\), got \(4, 4, 5\)"),
        ({"rotation_errors": np.array([np.nan])}, "rotation_errors must be finite"),
    ],
)
def test_data_that_cannot_be_shown_are_refused(report, change, message):
    with pytest.raises(ValueError, match=message):
        render(replace(report, **change))


def test_importing_the_report_loads_neither_jax_nor_matplotlib():
    code = "import sys, jimjax.report; print({'jax', 'matplotlib', 'sklearn'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
