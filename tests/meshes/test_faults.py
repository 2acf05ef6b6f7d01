"""What happens to a run of several processes when one of them fails, hangs or is stopped, or when the user errs."""

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import kill
import pytest
from small_run import MIX, TRAIN, metrics, quiet, weights

from ahkio.core import state
from ahkio.core.artifact import Artifact
from ahkio.core.stage import build
from ahkio.tokens.batches import open_batches

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
ALONE = replace(TRAIN, steps=12, heldout_context=32, heldout_documents=3)
SLOW = ("train.objective.pause=0.3", "train.save_every=0")
SECONDS = 240


@pytest.fixture(scope="module")
def unbroken(inputs, tmp_path_factory):
    """The run on two processes, in one go."""
    return kill.unbroken(tmp_path_factory.mktemp("unbroken") / "shard", "shard", inputs)


@pytest.fixture
def run(inputs, tmp_path):
    """A run of one's own, not begun."""
    one = kill.open_round(tmp_path / "run", "shard", 0, inputs)
    yield one
    kill.stop(one)


def wait_until(happened, seconds=SECONDS):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


def stepped(run):
    """Wait until the run has taken a step more than now."""
    before = kill.lines(run)
    wait_until(lambda: kill.lines(run) not in (0, before) or run.process.poll() is not None)
    assert run.process.poll() is None, run.words


def ended(run):
    """The status of `ahkio build`, and the lines it and its workers said since it was started."""
    status = run.process.wait(SECONDS)
    said = run.words.splitlines()
    (run.folder / "words.txt").write_text("")
    return status, said


def test_build_starts_the_processes_of_a_mesh_and_they_learn_what_one_does(unbroken, inputs, tmp_path):
    shutil.copytree(inputs, tmp_path / "artifacts")
    alone = build(ALONE, tmp_path / "artifacts", quiet)
    assert unbroken.facts["ledger"] == alone.facts["ledger"]
    assert unbroken.facts["hardware"]["mesh"] == {"shard": 2}
    for mine, other in zip(metrics(unbroken.path), metrics(alone.path), strict=True):
        assert (mine["step"], mine["loss"]) == (other["step"], pytest.approx(other["loss"], abs=1e-5))
    link = unbroken.path.parents[1] / "life" / "train"
    assert link.resolve() == unbroken.path


def test_several_processes_speak_with_one_voice(unbroken):
    said = (unbroken.path.parents[2] / "words.txt").read_text().splitlines()
    assert [line.partition(" (")[0] for line in said if line.startswith("TRAIN")] == ["TRAIN"] * 2
    assert len([line for line in said if line.startswith("train: bits per byte after step 12")]) == 1
    assert not [line for line in said if "warn" in line.lower() or "torch" in line or "Traceback" in line]


def test_a_run_stopped_in_every_way_saves_and_goes_on_to_the_bit(run, unbroken):
    for number, status in ((signal.SIGINT, 130), (signal.SIGUSR1, 75), (signal.SIGTERM, 75)):
        kill.start(run, *SLOW)
        stepped(run)
        run.process.send_signal(number)
        run.process.send_signal(number)  # the same wish twice, as some launchers have it
        found, said = ended(run)
        assert found == status, said
        assert len([line for line in said if "Stopped in TRAIN" in line and "the same command goes on" in line]) == 1
        assert not [line for line in said if "Traceback" in line or "lost" in line], said
        assert kill.check(run) == [f"step-{kill.lines(run):08d}"]
    kill.start(run, *SLOW, "train.time_limit=0.001")
    assert ended(run)[0] == 75
    kill.start(run)
    assert ended(run)[0] == 0
    made = kill.made(run)
    kill.same(made, unbroken)
    assert made.facts["restarts"] == 4


def test_what_the_user_can_mend_is_one_sentence_and_no_restart(run, unbroken):
    kill.start(run, *SLOW, "train.time_limit=0.001")
    assert ended(run)[0] == 75
    (checkpoint,) = state.checkpoints(run.draft / "checkpoints")
    whole = (checkpoint / "rank-00001.safetensors").read_bytes()
    torn = bytearray(whole)
    torn[len(torn) // 2] ^= 1
    (checkpoint / "rank-00001.safetensors").write_bytes(torn)
    kill.start(run)
    status, said = ended(run)
    assert status == 2, said
    (sentence,) = [line for line in said if line.startswith("ahkio:")]
    assert "rank-00001.safetensors" in sentence
    assert "damaged" in sentence
    (checkpoint / "rank-00001.safetensors").write_bytes(whole)
    kill.start(run)
    assert ended(run)[0] == 0
    kill.same(kill.made(run), unbroken)


def test_a_mistake_that_only_a_worker_finds_is_one_sentence(run):
    text = run.recipe.read_text()
    error = "from ahkio.core.errors import UserError\nimport os\nif os.environ.get('RANK') == '1':\n"
    run.recipe.write_text(f"{text}{error}    raise UserError('the disk of this recipe is elsewhere')\n")
    kill.start(run, "train.patience=10")
    status, said = ended(run)
    assert status == 2, said
    assert len([line for line in said if "the disk of this recipe is elsewhere" in line]) == 1
    assert not [line for line in said if "Traceback" in line or "lost" in line], said


def test_torchrun_by_hand_makes_all_that_is_missing(inputs, unbroken, tmp_path):
    run = kill.open_round(tmp_path / "run", "shard", 0)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "ahkio", "build"]
    words = tmp_path / "words.txt"
    with open(words, "w") as file:
        process = subprocess.Popen(
            [*command, str(run.recipe), "--runs", str(run.runs)],
            env=kill.environment(), stdout=file, stderr=file,
        )  # fmt: skip
    try:
        assert process.wait(SECONDS) == 0, words.read_text()
    finally:
        process.terminate()
    kill.same(kill.made(run), unbroken)
    said = words.read_text().splitlines()
    assert len([line for line in said if line.startswith("TRAIN") and ": done in" in line]) == 1


def test_workers_end_with_the_process_that_started_them_and_the_same_command_goes_on(run, unbroken):
    kill.start(run, *SLOW, "train.save_every=1")
    stepped(run)
    there = kill.workers(run.process.pid)
    assert sorted(there) == [0, 1]
    run.process.kill()
    run.process.wait(SECONDS)
    kill.start(run)
    wait_until(lambda: not any(alive(pid) for pid in there.values()), 10)
    assert ended(run)[0] == 0
    kill.same(kill.made(run), unbroken)


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_rank_that_hangs_is_named_and_the_run_goes_on(run, unbroken):
    kill.start(run, *SLOW, "train.save_every=1", "train.patience=8")
    stepped(run)
    pid = kill.workers(run.process.pid)[1]
    kill.send([pid], "SIGSTOP")
    wait_until(lambda: "lost each other" in run.words, 60)
    kill.send([pid], "SIGKILL")
    status, said = ended(run)
    assert status == 0, said
    (sentence,) = [line for line in said if line.startswith("ahkio: The 2 processes lost each other in step")]
    assert "no sign of life from rank 1 (last seen in " in sentence
    kill.same(kill.made(run), unbroken)


def test_failures_without_end_are_one_sentence(run):
    kill.start(run, *SLOW, restarts=0)
    stepped(run)
    kill.send([kill.workers(run.process.pid)[0]], "SIGKILL")
    status, said = ended(run)
    assert status == 1, said
    assert "Process 0 of 2 ended with SIGKILL" in said[-1]
    assert "the same command goes on" in said[-1]


@pytest.mark.parametrize(("axis", "seed"), [("shard", 0), ("pipe", 1)])
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(inputs, tmp_path, unbroken, axis, seed):
    one = kill.open_round(tmp_path / "run", axis, seed, inputs)
    wanted = unbroken if axis == "shard" else kill.unbroken(tmp_path / "unbroken", axis, inputs)
    kill.live(one, kill.plan(one.dice, 2), wanted)


def test_a_spike_on_a_mesh_is_gone_by_on_all_ranks(inputs, tmp_path, run):
    paths = {stage: inputs / stage.name for stage in MIX.sources.values()}
    row = tuple(open_batches(MIX, paths, TRAIN.rows, 48).read([31]).labels_BT[0].tolist())
    text = run.recipe.read_text()
    run.recipe.write_text(
        f"from small_run import Poisoned\n{text}TRAIN = replace(TRAIN, objective=Poisoned(row={row}))\n"
    )
    kill.start(run)
    assert ended(run)[0] == 0
    made = Artifact(kill.made(run).path)
    (gone,) = made.facts["skipped"]
    assert (gone["step"], gone["back_to"]) == (5, 4)
    rows = sum(source["rows"] for source in made.facts["ledger"].values())
    assert rows == 12 * 6 - 6
    assert [line["step"] for line in metrics(made.path)] == [step for step in range(12) if step != 5]
    assert weights(made.path)
