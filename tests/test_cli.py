"""The command line as users and scripts meet it: exit codes, streams, and what is left on disk."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from jimjax import cli
from jimjax.commands import progress
from jimjax.commands.poses import write_poses
from jimjax.commands.predict import features_path, write_prediction
from jimjax.data.subtomograms import Subtomograms, load, to_star
from jimjax.io import new_table, read_particles, write_stack, write_volume
from jimjax.train.run import Prediction

NUM, BOX = 12, 8
SCORES = {
    "clustering_accuracy",
    "ari",
    "v_measure",
    "rotation_error_mean",
    "rotation_error_std",
    "rotation_error_median",
    "translation_error_mean",
    "translation_error_std",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    """Commands run in this process must leave its environment and compile cache alone."""
    monkeypatch.setattr(cli, "prepare_jax", lambda: None)
    monkeypatch.chdir(tmp_path)


def particles_of(seed=0, num=NUM, num_classes=3):
    rng = np.random.default_rng(seed)
    return Subtomograms(
        volumes=rng.normal(size=(num, BOX, BOX, BOX)).astype(np.float32),
        tilt_ranges=np.tile(np.float32([-60, 60]), (num, 1)),
        voxel_size=10.0,
        names=tuple(f"p{n}" for n in range(num)),
        halves=1 + np.arange(num) % 2,
        rotations=Rotation.random(num, random_state=seed).as_matrix().astype(np.float32),
        shifts=rng.normal(size=(num, 3)).astype(np.float32),
        labels=np.arange(num) % num_classes,
    )


@pytest.fixture
def truth(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    to_star(particles_of(), folder / "particles.star", stack_path=folder / "particles.mrcs")
    return folder / "particles.star"


@pytest.fixture
def structures(tmp_path):
    """Two maps that fit a small box turned any way."""
    paths = []
    z, y, x = np.indices((BOX,) * 3) - BOX // 2
    for name, places in {"a": [(1, 0, 0), (-1, 1, 0)], "b": [(0, 0, 1), (0, -1, -1)]}.items():
        blobs = [np.exp(-((x - p) ** 2 + (y - q) ** 2 + (z - r) ** 2)) for p, q, r in places]
        write_volume(tmp_path / f"{name}.mrc", blobs[0] + 0.5 * blobs[1], voxel_size=10.0)
        paths.append(tmp_path / f"{name}.mrc")
    return paths


def simulate_arguments(structures, out):
    options = {"num-per-class": 6, "snr": 5, "box": 16, "voxel-size": 10, "max-shift": 1}
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    return ["simulate", "--structures", *structures, *flags, "--seed", 3, "--out", out]


# What is printed and how it ends


STEPS = [("segment", "train"), ("segment", "predict")]  # of commands that have steps
ALONE = [(name,) for name in cli.COMMANDS if name not in {step[0] for step in STEPS}]


@pytest.mark.parametrize("command", [*ALONE, *STEPS], ids=" ".join)
def test_help_of_command_tells_defaults_of_every_option(command, jimjax):
    code, out, err = jimjax(*command, "--help")
    assert (code, err) == (0, [])
    num_options = len(re.findall(r"^[│ ]*--[a-z-]+(?:,| [A-Z{\[]|$)", out, re.MULTILINE))
    text = " ".join(out.split())
    assert num_options > 0
    assert text.count("(default:") + text.count("(required)") >= num_options


def test_help_loads_no_heavy_package():
    code = (
        "import sys\nfrom jimjax import cli\ncode = cli.main(['--help'])\n"
        "heavy = {'jax', 'flax', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy or code else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["doctor", "simulate"]),
        (["smulate"], ["smulate", "simulate"]),
        (["predict"], ["--run", "--data", "--out"]),
        (["average", "c.star", "--out", "d", "--odrer", "1"], ["--odrer", "average --help"]),
        (["simulate", "--structures", "a.pdb", "--out", "d", "--snr", "low"], ["--snr", "low"]),
        (["segment", "train", "--method", "magic"], ["'magic'", "'le-uda', 'vox-uda'); see"]),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments, words, jimjax):
    code, out, err = jimjax(*arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert all(word in err[0] for word in words)
    assert max(err[0].lower().count(words) for words in ("invalid choice", "unrecognized")) <= 1


def test_version_is_that_of_the_package(jimjax):
    import jimjax as package

    assert jimjax("--version") == (0, f"jimjax {package.__version__}\n", [])


# Mistakes in the input


def broken_row(truth):
    lines = truth.read_text().rstrip().split("\n")
    truth.write_text("\n".join([*lines[:-1], lines[-1].rsplit(maxsplit=1)[0]]) + "\n")
    return "particles.star:42"


def truncated_stack(truth):
    stack = truth.with_suffix(".mrcs")
    stack.write_bytes(stack.read_bytes()[:-100])
    return "particles.mrcs"


def nan_voxels(truth):
    stack = truth.with_suffix(".mrcs")
    data = np.frombuffer(stack.read_bytes(), np.uint8).copy()
    data[1024:].view("<f4")[5] = np.nan
    stack.write_bytes(data.tobytes())
    return "NaN"


def constant_particle(truth):
    volumes = load(truth).volumes.copy()
    volumes[4] = 2.0
    write_stack(truth.with_suffix(".mrcs"), volumes, voxel_size=10.0)
    return "constant"


def mixed_boxes(truth):
    write_volume(truth.parent / "other.mrc", np.random.rand(6, 6, 6), voxel_size=10.0)
    names = read_particles(truth).strings("rlnImageName")
    table = read_particles(truth).with_columns({"rlnImageName": [*names[:-1], "other.mrc"]})
    table.write(truth)
    return "one box size"


def missing_tilt_columns(truth):
    names = read_particles(truth).strings("rlnImageName")
    new_table({"rlnImageName": names}).write(truth)
    return "--tilt-min"


def missing_stack(truth):
    truth.with_suffix(".mrcs").unlink()
    return "particles.mrcs"


def missing_star(truth):
    truth.unlink()
    return "particles.star"


BREAKS = [
    broken_row,
    truncated_stack,
    nan_voxels,
    constant_particle,
    mixed_boxes,
    missing_tilt_columns,
    missing_stack,
    missing_star,
]


@pytest.mark.parametrize("break_input", BREAKS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("command", ["train", "average", "doctor"])
def test_broken_input_is_one_line_and_leaves_nothing_behind(break_input, command, truth, jimjax):
    words = break_input(truth)
    (truth.parent / "run.toml").write_text("")
    before = snapshot(truth.parent)
    code, out, err = jimjax(*using(command, truth))
    assert code == 2
    assert len(err) == 1, err
    assert words.lower() in err[0].lower()
    assert command == "doctor" or out == ""
    assert snapshot(truth.parent) == before


def using(command, truth):
    out = truth.parent / "out"
    return {
        "train": ["train", truth.parent / "run.toml", "--data", truth, "--out", out],
        "average": ["average", truth, "--out", out],
        "doctor": ["doctor", "--data", truth],
    }[command]


def snapshot(folder):
    """Every file below a folder with its bytes and time of change."""
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_unknown_key_names_the_nearest_and_makes_no_run(truth, jimjax):
    config = truth.parent / "run.toml"
    config.write_text("[pretrain]\nstps = 10\n")
    code, _, err = jimjax("train", config, "--data", truth, "--out", "run")
    assert (code, len(err)) == (2, 1)
    assert "pretrain.stps" in err[0]
    assert "pretrain.steps" in err[0]
    assert not (truth.parents[1] / "run").exists()


@pytest.mark.parametrize("value", ["10", "0:5", "10:0", "a:b", "-1:5"])
def test_profile_that_is_no_range_of_steps_is_a_mistake(value, truth, jimjax):
    config = truth.parent / "run.toml"
    config.write_text("")
    arguments = ("--data", truth, "--out", "run", f"--profile={value}")
    code, _, err = jimjax("train", config, *arguments)
    assert (code, len(err)) == (2, 1)
    assert f"--profile {value}: give FIRST:COUNT, such as 10:5" in err[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fsdp", 1000], "--fsdp 1000: [0-9]+ devices do not fill rows of 1000"),
        (["--num-processes", 2], "--num-processes and --process-id need --distributed"),
    ],
)
def test_devices_that_cannot_be_are_a_mistake(options, message, truth, jimjax):
    config = truth.parent / "run.toml"
    config.write_text("")
    code, _, err = jimjax("train", config, "--data", truth, "--out", "run", *options)
    assert (code, len(err)) == (2, 1)
    assert re.search(message, err[0])


def test_one_tilt_limit_alone_asks_for_the_other(truth, jimjax):
    code, _, err = jimjax("average", truth, "--tilt-min", "-60", "--out", "out")
    assert (code, len(err)) == (2, 1)
    assert "--tilt-max" in err[0]


def test_folder_of_no_run_is_named(truth, jimjax):
    arguments = ("--run", truth.parent, "--data", truth, "--out", "classes.star")
    code, out, err = jimjax("predict", *arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert "not a run" in err[0]


def test_folder_with_a_run_is_not_trained_in_again(truth, jimjax):
    (truth.parent / "run.toml").write_text("[network]\nnum_classes = 3\n")
    run = truth.parent / "run"
    run.mkdir()
    (run / "config.toml").write_text("seed = 1\n")
    before = snapshot(truth.parent)
    code, out, err = jimjax("train", truth.parent / "run.toml", "--data", truth, "--out", run)
    assert (code, out, len(err)) == (2, "", 1)
    assert "--resume" in err[0]
    assert snapshot(truth.parent) == before


def test_progress_lines_tell_step_loss_and_time_left(capsys, monkeypatch):
    times = iter([100.0, 102.0, 112.0, 113.0])  # seconds, at the four steps
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    lines = progress.ProgressLines()
    for step in (1, 2, 3, 4):
        lines.update("pairs", step, 100, {"loss": 2.5})
    assert capsys.readouterr().err.splitlines() == [
        "pairs: step 1/100, loss 2.5, ETA unknown",
        "pairs: step 3/100, loss 2.5, ETA 9:42",  # 6 s a step, 97 to go
    ]


def test_input_is_never_the_output(truth, jimjax):
    before = snapshot(truth.parent)
    code, _, err = jimjax("predict", "--run", "run", "--data", truth, "--out", truth)
    assert (code, len(err)) == (2, 1)
    assert "read as an input" in err[0]
    assert snapshot(truth.parent) == before


def test_simulation_replaces_no_particles_it_did_not_make(structures, truth, jimjax):
    before = snapshot(truth.parent)
    code, _, err = jimjax(*simulate_arguments(structures, truth.parent))
    assert (code, len(err)) == (2, 1)
    assert snapshot(truth.parent) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("--snr", "0"), ("--voxel-size", "-1"), ("--tilt-min", "80"), ("--num-per-class", "0")],
)
def test_simulation_out_of_range_makes_no_folder(option, value, structures, tmp_path, jimjax):
    arguments = [*simulate_arguments(structures, tmp_path / "new"), option, value]
    code, out, err = jimjax(*arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert not (tmp_path / "new").exists()


def test_demo_wants_an_empty_folder(truth, jimjax):
    before = snapshot(truth.parent)
    code, _, err = jimjax("demo", "--quick", "--out", truth.parent)
    assert (code, len(err)) == (2, 1)
    assert snapshot(truth.parent) == before


@pytest.mark.parametrize("name", ["Interrupted", "TrainingError"])
def test_end_of_training_decides_the_exit_code(name, truth, jimjax, monkeypatch):
    from jimjax.train import loop, run

    def end(*_, **__):
        raise getattr(loop, name)("stopped at step 3 of 9")

    monkeypatch.setattr(run, "train_run", end)
    (truth.parent / "run.toml").write_text("")
    code, _, err = jimjax("train", truth.parent / "run.toml", "--data", truth, "--out", "run")
    assert code == {"Interrupted": 75, "TrainingError": 1}[name]
    assert "step 3 of 9" in err[-1]
    assert not any("Traceback" in line for line in err)


# Results


def test_simulated_particles_scored_against_themselves_are_perfect(structures, tmp_path, jimjax):
    assert jimjax(*simulate_arguments(structures, tmp_path / "sim"))[0] == 0
    star = tmp_path / "sim" / "particles.star"
    code, out, err = jimjax("evaluate", star, "--truth", star, "--json")
    assert (code, err) == (0, [])
    scores = json.loads(out)
    assert scores.keys() >= SCORES
    assert scores["clustering_accuracy"] == 1.0
    assert scores["rotation_error_mean"] < 1e-3  # angles in degrees, float32 matrices
    assert scores["translation_error_mean"] < 1e-3


def test_simulation_writes_truth_and_the_names_of_its_structures(structures, tmp_path, jimjax):
    jimjax(*simulate_arguments(structures, tmp_path / "sim"))
    particles = load(tmp_path / "sim" / "particles.star", with_poses=True)
    assert particles.volumes.shape == (12, 16, 16, 16)
    assert np.bincount(particles.labels).tolist() == [6, 6]
    assert np.abs(particles.shifts).max() <= 1.0 + 1e-6
    provenance = json.loads((tmp_path / "sim" / "provenance.json").read_text())
    assert provenance["structure_names"] == ["a.mrc", "b.mrc"]
    assert provenance["seed"] == 3


def test_simulated_masks_lie_beside_the_particles_and_go_where_their_table_goes(
    structures, tmp_path, jimjax
):
    sim = tmp_path / "sim"
    options = ["--masks", "--mask-threshold", "0.4", "--snr", "inf", "--tilt-min", "-90"]
    command = [*simulate_arguments(structures, sim), *options, "--tilt-max", "90"]
    assert jimjax(*command)[0] == 0
    assert json.loads((sim / "provenance.json").read_text())["mask_threshold"] == 0.4
    assert read_particles(sim / "particles.star").strings("rlnMaskName")[0] == "000001@masks.mrcs"
    particles = load(sim / "particles.star", with_poses=True, with_masks=True)
    darkest = particles.volumes.min(axis=(1, 2, 3), keepdims=True)
    # Without wedge and noise a mask is where its particle is dark; at rest the peak may be higher.
    np.testing.assert_array_equal(particles.masks & (particles.volumes > 0.2 * darkest), False)
    np.testing.assert_array_equal(~particles.masks & (particles.volumes < 0.6 * darkest), False)
    (tmp_path / "elsewhere").mkdir()
    moved = tmp_path / "elsewhere" / "classes.star"
    poses = particles.labels, particles.rotations, particles.shifts
    write_poses(particles, sim / "particles.star", moved, *poses)
    np.testing.assert_array_equal(load(moved, with_masks=True).masks, particles.masks)


def test_masks_of_replaced_particles_do_not_stay(structures, tmp_path, jimjax):
    command = simulate_arguments(structures, tmp_path / "sim")
    assert jimjax(*command, "--masks")[0] == 0
    assert (tmp_path / "sim" / "masks.mrcs").exists()
    assert jimjax(*command)[0] == 0
    assert not (tmp_path / "sim" / "masks.mrcs").exists()
    assert "mask_threshold" not in json.loads((tmp_path / "sim" / "provenance.json").read_text())


def test_simulation_neither_replaces_nor_removes_masks_it_did_not_make(
    structures, tmp_path, jimjax
):
    command = simulate_arguments(structures, tmp_path / "sim")
    assert jimjax(*command)[0] == 0
    (tmp_path / "sim" / "masks.mrcs").write_text("by hand")
    before = snapshot(tmp_path / "sim")
    code, _, err = jimjax(*command, "--masks")
    assert (code, len(err)) == (2, 1)
    assert "masks.mrcs: is not from a simulation; give another --out" in err[0]
    assert snapshot(tmp_path / "sim") == before
    assert jimjax(*command)[0] == 0
    assert (tmp_path / "sim" / "masks.mrcs").read_text() == "by hand"


def test_mask_threshold_out_of_range_makes_no_folder(structures, tmp_path, jimjax):
    arguments = [*simulate_arguments(structures, tmp_path / "new"), "--masks"]
    code, out, err = jimjax(*arguments, "--mask-threshold", "1.5")
    assert (code, out, len(err)) == (2, "", 1)
    assert "mask_threshold must be a fraction between 0 and 1, got 1.5" in err[0]
    assert not (tmp_path / "new").exists()


def test_same_seed_simulates_the_same_bytes(structures, tmp_path, jimjax):
    for name in ("one", "two"):
        assert jimjax(*simulate_arguments(structures, tmp_path / name))[0] == 0
    stacks = [(tmp_path / name / "particles.mrcs").read_bytes() for name in ("one", "two")]
    assert stacks[0] == stacks[1]


def test_particles_in_another_order_are_matched_by_image(truth, jimjax):
    read_particles(truth).select(np.arange(NUM)[::-1]).write(truth.with_name("turned.star"))
    _, out, _ = jimjax("evaluate", truth.with_name("turned.star"), "--truth", truth, "--json")
    scores = json.loads(out)
    assert scores["clustering_accuracy"] == 1.0
    assert scores["rotation_error_mean"] < 1e-6


def test_random_poses_score_as_chance(tmp_path, jimjax):
    particles = particles_of(num=300)
    to_star(particles, tmp_path / "t.star", stack_path=tmp_path / "t.mrcs")
    table = read_particles(tmp_path / "t.star")
    rng = np.random.default_rng(5)
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    angles = Rotation.random(300, random_state=6).as_euler("ZYZ", degrees=True).T
    shuffled = dict(zip(names, angles, strict=True))
    shuffled["rlnClassNumber"] = rng.integers(1, 4, 300)
    table.with_columns(shuffled).write(tmp_path / "c.star")
    _, out, _ = jimjax("evaluate", tmp_path / "c.star", "--truth", tmp_path / "t.star", "--json")
    scores = json.loads(out)
    assert scores["clustering_accuracy"] < 0.45  # three classes, best of six matchings
    assert abs(scores["ari"]) < 0.02
    assert abs(scores["rotation_error_mean"] - 2.40) < 0.05  # mean over SO(3) is 2.401


def test_scores_per_class_see_the_class_whose_poses_are_wrong(structures, tmp_path, jimjax):
    assert jimjax(*simulate_arguments(structures, tmp_path / "sim"))[0] == 0
    truth = tmp_path / "sim" / "particles.star"
    table = read_particles(truth)
    rot = table.floats("rlnAngleRot")
    is_second = table.floats("rlnClassNumber") == 2
    rot[is_second] += np.linspace(0, 300, is_second.sum())
    table.with_columns({"rlnAngleRot": rot}).write(truth.with_name("turned.star"))
    command = ("evaluate", truth.with_name("turned.star"), "--truth", truth, "--per-class")
    scores = json.loads(jimjax(*command, "--json")[1])["per_class"]
    assert list(scores) == ["1", "2"]
    assert scores["1"]["rotation_error_mean"] < 1e-3 < 1 < scores["2"]["rotation_error_mean"]
    assert scores["1"]["share_together"] == 1.0
    assert scores["1"]["num_pairs"] == 15  # six particles
    _, text, _ = jimjax(*command)
    assert "class 2" in text


@pytest.mark.parametrize(
    ("rows", "words"), [([0, *range(NUM)], "are both"), (range(NUM - 2), "2 particles are not in")]
)
def test_particles_that_do_not_match_are_refused(rows, words, truth, jimjax):
    read_particles(truth).select(list(rows)).write(truth.with_name("c.star"))
    code, out, err = jimjax("evaluate", truth.with_name("c.star"), "--truth", truth, "--json")
    assert (code, out, len(err)) == (2, "", 1)
    assert words in err[0]


def test_evaluation_without_classes_names_the_column(truth, jimjax):
    table = read_particles(truth)
    kept = ("rlnImageName", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    bare = new_table({name: table.strings(name) for name in kept}, {"rlnImagePixelSize": [10.0]})
    bare.write(truth.with_name("bare.star"))
    code, _, err = jimjax("evaluate", truth.with_name("bare.star"), "--truth", truth)
    assert (code, len(err)) == (2, 1)
    assert "rlnClassNumber" in err[0]


def prediction_of(particles):
    num = len(particles)
    return Prediction(
        labels=particles.labels.astype(np.int32),
        probabilities=np.tile(np.float32([0.2, 0.7, 0.1]), (num, 1)),
        features=np.random.default_rng(0).normal(size=(num, 4)).astype(np.float32),
        rotations=particles.rotations,
        shifts=particles.shifts,
        correlations=np.linspace(0, 1, num, dtype=np.float32),
    )


def test_prediction_keeps_what_the_file_held_and_finds_its_images(truth, tmp_path):
    table = read_particles(truth)
    halfless = {name: table.strings(name) for name in table.columns if name != "rlnRandomSubset"}
    extra = {"rlnMicrographName": [f"00{n}" for n in range(NUM)]}
    new_table(halfless | extra, {"rlnOpticsGroup": [1], "rlnImagePixelSize": [10.0]}).write(truth)
    other = particles_of(seed=9)
    out = tmp_path / "elsewhere"
    out.mkdir()
    loaded = load(truth)
    write_prediction(prediction_of(other), loaded, truth, out / "classes.star")
    written = read_particles(out / "classes.star")
    assert written.strings("rlnMicrographName") == extra["rlnMicrographName"]
    assert set(written.columns) >= {"rlnRandomSubset", "jimCorrelation", "jimClassProbability"}
    again = load(out / "classes.star", with_poses=True)
    np.testing.assert_array_equal(again.volumes, loaded.volumes)
    np.testing.assert_allclose(again.rotations, other.rotations, atol=1e-6)
    np.testing.assert_allclose(again.shifts, other.shifts, atol=1e-6)
    np.testing.assert_array_equal(again.labels, other.labels)
    np.testing.assert_array_equal(again.halves, loaded.halves)
    with np.load(features_path(out / "classes.star")) as archive:
        assert archive["features"].shape == (NUM, 4)


def test_tilt_range_of_the_command_line_is_kept_in_the_prediction(truth, tmp_path):
    particles = load(truth, tilt_range=(-40, 50))
    write_prediction(prediction_of(particles_of()), particles, truth, tmp_path / "c.star")
    np.testing.assert_array_equal(load(tmp_path / "c.star").tilt_ranges[0], [-40, 50])


def test_predicted_averaged_scored_and_reported(truth, tmp_path, jimjax):
    write_prediction(prediction_of(particles_of()), load(truth), truth, tmp_path / "classes.star")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text("seed = 0\n")
    (run / "provenance.json").write_text('{"devices": ["cpu"], "versions": {"jax": "1"}}')
    (run / "metrics.jsonl").write_text('{"stage": "pairs", "epoch": 0, "step": 4, "loss": 2.0}\n')
    assert jimjax("average", "classes.star", "--out", "averages")[0] == 0
    summary = json.loads((tmp_path / "averages" / "summary.json").read_text())
    assert [entry["num_particles"] for entry in summary["classes"]] == [4, 4, 4]
    inputs = ("--run", run, "--classes", "classes.star", "--truth", truth)
    code, _, err = jimjax("report", *inputs, "--averages", "averages", "--out", "r.html")
    assert (code, err) == (0, [])
    page = (tmp_path / "r.html").read_text()
    assert page.count("Class 3") >= 1
    assert "No training history" not in page
    assert "<script src" not in page


def test_doctor_reports_what_the_file_holds(truth, jimjax):
    code, out, err = jimjax("doctor", "--data", truth)
    assert (code, err) == (0, [])
    lines = [line.split(maxsplit=1) for line in out.splitlines()]
    assert not any(status == "FAILED" for status, _ in lines)
    for words in ("12 in", "8 voxels", "10 A", "-60 to -60", "contrast"):
        assert words in out


def test_doctor_writes_what_it_prints(truth, jimjax):
    out = truth.with_name("doctor.json")
    _, printed, _ = jimjax("doctor", "--data", truth, "--out", out)
    findings = json.loads(out.read_text())["findings"]
    lines = [f"{each['status']:<8} {each['subject']:<14} {each['text']}" for each in findings]
    assert printed.splitlines() == lines


def test_doctor_warns_of_headers_with_another_voxel_size(truth, jimjax):
    _, out, _ = jimjax("doctor", "--data", truth, "--voxel-size", "5")
    assert "1 of 1 differ from 5 A" in out


@pytest.mark.parametrize(("sign", "word"), [(-1, "dark"), (1, "light")])
def test_doctor_tells_the_contrast(sign, word, tmp_path, jimjax):
    particles = particles_of()
    particles.volumes[:, 3:6, 3:6, 3:6] += sign * 3.0
    to_star(particles, tmp_path / "p.star", stack_path=tmp_path / "p.mrcs")
    assert f"probably {word}" in jimjax("doctor", "--data", "p.star")[1]


def test_seed_and_classes_of_the_command_line_override_the_file(truth, jimjax, monkeypatch):
    from jimjax.train import run

    taken = []
    monkeypatch.setattr(run, "train_run", lambda config, *_, **__: taken.append(config))
    (truth.parent / "run.toml").write_text("seed = 3\n")
    arguments = ["train", truth.parent / "run.toml", "--data", truth, "--out", "run"]
    assert jimjax(*arguments, "--seed", "5", "--num-classes", "2")[0] == 0
    assert (taken[0].seed, taken[0].network.num_classes) == (5, 2)


def test_presets_are_part_of_the_package():
    root = cli.Path(cli.__file__).parent
    config = tomllib.loads((root.parent / "pyproject.toml").read_text())
    patterns = config["tool"]["setuptools"]["package-data"]["jimjax"]
    assert any(list(root.glob(pattern)) for pattern in patterns)


def test_readme_names_every_command_and_its_python_imports_work():
    text = (cli.Path(cli.__file__).parents[1] / "README.md").read_text()
    assert all(f"`jimjax {name}" in text for name in cli.COMMANDS)
    example = text.partition("```python\n")[2].partition("```")[0]
    tree = ast.parse(example)
    tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    exec(compile(tree, "README.md", "exec"), {})
    assert len(tree.body) == 6
