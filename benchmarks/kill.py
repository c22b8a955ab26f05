"""Does a run that is killed again and again end as one that was left alone?

    python -m benchmarks kill [--times 30] [--seed 0]

Small runs with momentum, batch normalisation and an automatic λ, in a process of their own, write
a checkpoint after every step, so that one is nearly always on its way to the disk. The process is
ended by SIGKILL at moments drawn from the seed: while it starts, while it trains (some time after
a checkpoint drawn among those to come), or at the end, where the last checkpoint, result.json and
report.html are written. It is resumed and killed up to three times, and then left to finish. Every
second run streams JPEG files, so that the position of its data has to come back too; the others
augment images that lie on the device.

What is left must equal what a run that was never killed leaves: weights/, path.npz and norms.npz
byte for byte, every array of every checkpoint kept, metrics.jsonl line by line and result.json but
for the seconds, and no other file. What is counted are kills: the process was alive when the
signal came.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.results import write
from dessilbi_jax import run_files

COST = {"cpu": "13 minutes on two cores with --times 30"}

STAGES = ("start", "training", "end")
SHARES = (0.2, 0.6, 0.2)  # of the kills
PER_RUN = 3
KINDS = ("streamed", "resident")
_LIMIT = 600.0  # seconds that no process of a run should take
STEPS = 30
# The first one is not there where a run was resumed at its very end; the others tell times.
_OPTIONAL = {run_files.PATH + ".previous"}
_OF_THEIR_OWN = {run_files.LOCK, run_files.CONFIG, run_files.REPORT}


def config(kind: str) -> Any:
    """A run of `STEPS` steps."""
    from dessilbi_jax import train

    common: dict[str, Any] = {"network": "vgg-small", "widths": (6,), "learning_rate": 0.1,
                              "schedule": "cosine", "density": 0.3}  # fmt: skip
    if kind == "resident":
        return train.TrainConfig(dataset="digits", epochs=3, augment=True, **common)
    return train.TrainConfig(
        dataset="folder", image_size=32, epochs=5, batch_size=9, records_per_epoch=2, **common
    )


def write_images(root: Path, train: int = 60, test: int = 12) -> None:
    """Noisy JPEG files of various sizes in two classes, brighter and darker."""
    import PIL.Image

    draw = np.random.default_rng(0)
    for part, n in (("train", train), ("test", test)):
        for i in range(n):
            sides = draw.integers(34, 60, 2)
            pixels = draw.normal(80 + 90 * (i % 2), 50, (*sides, 3)).clip(0, 255)
            folder = root / part / ("dark", "light")[i % 2]
            folder.mkdir(parents=True, exist_ok=True)
            stream = io.BytesIO()
            PIL.Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG")
            (folder / f"{i:03d}.jpg").write_bytes(stream.getvalue())


def train_here(kind: str, out: Path, images: Path) -> None:
    """Trains or goes on in this process; says on standard output how far it is."""
    from dessilbi_jax import train
    from dessilbi_jax.train.progress import Progress

    class Told(Progress):
        def begin(self, step: int) -> None:
            print("begin", step, flush=True)

        def epoch(self, line: dict[str, Any], epochs: int) -> None:
            if line["epoch"] == epochs:
                print("end", line["step"], flush=True)

        def note(self, text: str) -> None:
            print("note", text, flush=True)

    train.fit(
        config(kind),
        out,
        data_dir=images if kind == "streamed" else None,
        checkpoint_steps=1,
        resume=(out / run_files.CONFIG).exists(),
        progress=Told(),
    )


class Child:
    """A process that trains.

    Attributes:
        events: the lines it said so far, with the seconds since its start.
    """

    def __init__(self, kind: str, out: Path, images: Path, cache: Path) -> None:
        # Nothing is compiled twice, neither by JAX nor by Python.
        flags = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
                 "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                 "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
                 "PYTHONDONTWRITEBYTECODE": "",
                 "PYTHONPYCACHEPREFIX": str(images.with_name("pyc"))}  # fmt: skip
        self._out = out
        self.events: list[tuple[float, str]] = []
        self._began, self._errors = time.monotonic(), tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.kill", "--train", kind, str(out), str(images)],
            stdout=subprocess.PIPE, stderr=self._errors, text=True, env=os.environ | flags,
            cwd=Path(__file__).parents[1],
        )  # fmt: skip
        self._watch = threading.Timer(_LIMIT, self.process.kill)
        self._watch.start()

    def lines(self) -> Iterator[str]:
        """What it says, line by line, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append((time.monotonic() - self._began, line.strip()))
            yield line.strip()

    def finish(self) -> dict[str, float]:
        """Waits for its end; returns when it began to train, was done with it and ended."""
        for _ in self.lines():
            pass
        self.process.wait()
        whole = time.monotonic() - self._began
        self._end()
        return {line.split()[0]: at for at, line in self.events} | {"exit": whole}

    def kill(self, stage: str, draw: np.random.Generator, seconds: dict[str, float]) -> Any:
        """Kills it in a stage; returns what was seen, None if it ended before.

        Args:
            stage: one of `STAGES`.
            draw: of the moment.
            seconds: how long each stage takes.
        """
        delay, share = seconds[stage], float(draw.random())
        if stage == "training":
            begin = next((s for s in self.lines() if s.startswith("begin")), "begin 0")
            first = int(begin.split()[1])
            # Checkpoints tell how far it is, however busy the machine.
            target = int(draw.integers(first, max(STEPS - 2, first + 1)))
            while (newest(self._out) or 0) < target and self.process.poll() is None:
                time.sleep(0.002)
            delay /= STEPS
        elif stage == "end":
            next((s for s in self.lines() if s.startswith("end")), None)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(share * delay)
        if self.process.poll() is not None:
            self._end()
            return None
        self.process.send_signal(signal.SIGSTOP)  # so that what is seen is what is killed
        saving = any((self._out / run_files.CHECKPOINTS).glob("*.orbax-checkpoint-tmp*"))
        self.process.kill()
        self.process.wait()
        self._close()
        last = (run_files.RESULT, run_files.REPORT)
        files = [name for name in last if (self._out / name).exists()]
        return {"stage": stage, "saving": saving, "checkpoint": newest(self._out), "files": files}

    def _end(self) -> None:
        """Closes what was opened for it.

        Raises:
            RuntimeError: it failed; with the end of what it printed.
        """
        self._errors.seek(0)
        told = self._errors.read()[-3000:]
        self._close()
        if code := self.process.returncode:
            raise RuntimeError(f"exit code {code}: {told}")

    def _close(self) -> None:
        self._watch.cancel()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._errors.close()


class Harness:
    """Reference runs, and runs that are killed, in a folder of their own.

    Args:
        root: the folder.
        seed: of the moments.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.images = root, root / "images"
        self._draw = np.random.default_rng(seed)
        self._seconds: dict[str, dict[str, float]] = {}
        write_images(self.images)

    def reference(self, kind: str) -> Path:
        """The folder of a run that was not killed; made once, with all that is compiled kept."""
        run = self.root / kind
        if kind not in self._seconds:
            at = Child(kind, run, self.images, self.root / f"{kind}-cache").finish()
            self._seconds[kind] = {"start": at["begin"], "training": at["end"] - at["begin"],
                                   "end": at["exit"] - at["end"]}  # fmt: skip
        return run

    def killed(self, kind: str, stages: Sequence[str]) -> dict[str, Any]:
        """A run killed in each of these stages in turn, then left to finish, and what differs.

        It is killed less often where a moment comes too late.
        """
        reference, run = self.reference(kind), Path(tempfile.mkdtemp(dir=self.root)) / "run"
        kills: list[dict[str, Any]] = []
        for stage in stages:
            # A kill may leave half an entry in the cache, which is not what is looked at.
            cache = Path(tempfile.mkdtemp(dir=run.parent))
            shutil.copytree(self.root / f"{kind}-cache", cache, dirs_exist_ok=True)
            child = Child(kind, run, self.images, cache)
            seen = child.kill(stage, self._draw, self._seconds[kind])
            if seen is None:
                break
            kills.append(seen)
        child = Child(kind, run, self.images, self.root / f"{kind}-cache")
        child.finish()
        notes = sorted({line for _, line in child.events if line.startswith("note")})
        return {"kind": kind, "kills": kills, "notes": [n.replace(str(run), "RUN") for n in notes],
                "differences": differences(run, reference)}  # fmt: skip

    def stages(self, n: int) -> list[str]:
        """Stages to kill in, drawn by their shares."""
        return [str(stage) for stage in self._draw.choice(STAGES, n, p=SHARES)]


def newest(run: Path) -> int | None:
    """The step of the newest checkpoint."""
    steps = [int(d.name) for d in (run / run_files.CHECKPOINTS).glob("*") if d.name.isdecimal()]
    return max(steps, default=None)


def arrays(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by name."""
    import jax
    import orbax.checkpoint as ocp

    place = checkpoint.absolute() / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(place).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        saved = reader.restore(place, ocp.args.PyTreeRestore(restore_args=as_numpy))
    leaves = jax.tree_util.tree_flatten_with_path(saved)[0]
    return {jax.tree_util.keystr(keys): np.asarray(leaf) for keys, leaf in leaves}


def differences(run: Path, reference: Path) -> list[str]:
    """What of a finished run is not as in another one, but for times; empty where all is."""
    odd = []
    names = [sorted(f.relative_to(r).as_posix() for f in r.rglob("*")
                    if not f.is_relative_to(r / run_files.CHECKPOINTS))
             for r in (run, reference)]  # fmt: skip
    only = set(names[0]) ^ set(names[1])
    odd += [f"{name} is in one of them only" for name in sorted(only - _OPTIONAL)]
    for name in sorted(set(names[0]) & set(names[1]) - _OPTIONAL - _OF_THEIR_OWN):
        files = [r / name for r in (run, reference)]
        if name in (run_files.METRICS, run_files.RESULT):
            same = _without_seconds(files[0]) == _without_seconds(files[1])
        else:
            same = files[0].is_dir() or files[0].read_bytes() == files[1].read_bytes()
        if not same:
            odd.append(f"{name} differs")
    seconds = [line["seconds"] for line in _lines(run / run_files.METRICS)]
    if seconds != sorted(seconds):
        odd.append("seconds go back in metrics.jsonl")
    kept = [sorted(d.name for d in (r / run_files.CHECKPOINTS).iterdir()) for r in (run, reference)]
    if kept[0] != kept[1]:
        odd.append(f"checkpoints {kept[0]}, expected {kept[1]}")
    for step in sorted(set(kept[0]) & set(kept[1])):
        places = [r / run_files.CHECKPOINTS / step for r in (run, reference)]
        a, b = (arrays(place) for place in places)
        odd += [f"checkpoint {step}: {name} differs" for name in sorted(a.keys() | b.keys())
                if name not in a or name not in b or a[name].dtype != b[name].dtype
                or a[name].tobytes() != b[name].tobytes()]  # fmt: skip
        meta, expected = (json.loads((p / "meta.json").read_text()) for p in places)
        if {**meta, "seconds": 0} != {**expected, "seconds": 0}:
            odd.append(f"checkpoint {step}: meta.json differs")
        if not meta["seconds"] > 0:
            odd.append(f"checkpoint {step}: no time was counted")
    return odd


def _lines(file: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file: of each line, or the one it holds."""
    text = file.read_text()
    return [json.loads(each) for each in (text.splitlines() if file.suffix == ".jsonl" else [text])]


def _without_seconds(file: Path) -> list[dict[str, Any]]:
    """The same without their times."""
    return [{k: v for k, v in each.items() if k != "seconds"} for each in _lines(file)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=30, help="kills in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)  # what the processes run
    args = parser.parse_args()
    if args.train:
        train_here(args.train[0], *map(Path, args.train[1:]))
        return
    started = time.time()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as root:
        harness, left = Harness(Path(root), args.seed), args.times
        while left:
            stages = harness.stages(min(PER_RUN, left))
            runs.append(harness.killed(KINDS[len(runs) % 2], stages))
            left -= len(runs[-1]["kills"])
            print(json.dumps(runs[-1]), flush=True)
    kills = [kill for run in runs for kill in run["kills"]]
    result = {
        "times": len(kills),
        "seed": args.seed,
        "with_a_checkpoint_on_its_way": sum(kill["saving"] for kill in kills),
        "stages": {stage: sum(kill["stage"] == stage for kill in kills) for stage in STAGES},
        "runs_that_differ": sum(bool(run["differences"]) for run in runs),
        "runs": runs,
    }
    print(f"{len(kills)} kills in {len(runs)} runs, {result['with_a_checkpoint_on_its_way']} with "
          f"a checkpoint on its way; {result['runs_that_differ']} runs differ")  # fmt: skip
    print(f"written to {write('kill', result, started)}")


if __name__ == "__main__":
    main()
