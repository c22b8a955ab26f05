"""How many images a second does the streaming input give, where does its time go, and is it ahead?

    python -m benchmarks.input_pipeline [--images 400] [--rounds 3] [--consumer IMAGES_A_SECOND]

A folder of JPEG files of ImageNet's usual size (500x375 pixels, quality 90, about 110 KB: smooth
colours with fine noise) is made, and measured are

- the stages of one train image one after another in one thread: reading the file (from the
  memory of the operating system, so no disk is measured), decoding it whole, and cropping and
  resizing it; the latter two also with JPEG's own decoding at 1/2, 1/4 or 1/8 of the size where
  the crop allows it, as the library does;
- the whole pipeline, with threads and with worker processes, `Source.train_batches`;
- a training step fed by it: the step of resnet-small at 64x64 alone, and the share of the time
  that it waits when it is fed. Both share the same cores, which they would not on a machine with
  an accelerator; there the question is whether the pipeline is faster than the consumer, which
  the rates above answer (--consumer puts a number beside them).

Everything is measured in rounds, in turn; medians are given.
"""

import argparse
import io
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import PIL.Image

from benchmarks.harness.results import write
from dessilbi_jax import data, models
from dessilbi_jax.data import _crops

COST = {"cpu": "6 minutes on two cores"}

WIDTH, HEIGHT, QUALITY = 500, 375, 90
SIZES = (224, 128, 64)  # of one thread's stages
PIPELINE_SIZES = (224, 64)
WAYS = ((1, 0), (2, 0), (1, 1), (1, 2))  # threads (of each worker), workers
BATCH = 64


def jpeg(seed: int) -> bytes:
    """An image of smooth colours and fine noise, about as large as ImageNet's are."""
    draw = np.random.default_rng(seed)

    def noise(width: int, height: int) -> PIL.Image.Image:
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = PIL.Image.fromarray(pixels)
        return image.resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC)

    buffer = io.BytesIO()
    image = PIL.Image.blend(noise(16, 12), noise(WIDTH // 2, HEIGHT // 2), 0.47)
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def make(root: pathlib.Path, images: int, seed: int) -> list[pathlib.Path]:
    """Train and test images of four classes; the paths of the train images."""
    for number in range(images + 8):
        part = "train" if number < images else "val"
        file = root / part / f"class{number % 4}" / f"{number:05d}.JPEG"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(seed + number))
    return sorted((root / "train").rglob("*.JPEG"))


def whole(encoded: bytes, size: int, rng: np.random.Generator) -> None:
    """As the library's random crop, decoding every pixel of the file."""
    image = PIL.Image.open(io.BytesIO(encoded)).convert("RGB")
    box = _crops.random_box(image.width, image.height, rng)
    np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR, box=box))


def stages(files: list[pathlib.Path]) -> dict[str, Callable[[], Any]]:
    """What is timed over all files in one thread, by name."""
    encoded = [file.read_bytes() for file in files]

    def crops(of: Callable[..., Any], size: int) -> Callable[[], Any]:
        return lambda: [of(e, size, np.random.default_rng(i)) for i, e in enumerate(encoded)]

    def decode() -> None:
        for e in encoded:
            PIL.Image.open(io.BytesIO(e)).convert("RGB")

    cases: dict[str, Callable[[], Any]] = {
        "read": lambda: [file.read_bytes() for file in files],
        "decode": decode,
    }
    for size in SIZES:
        cases[f"decode whole, crop, resize to {size}"] = crops(whole, size)
        cases[f"decode as needed, crop, resize to {size}"] = crops(_crops.train_pixels, size)
    return cases


def summary(rates: list[float]) -> dict[str, Any]:
    """Median and quartiles of images a second."""
    low, middle, high = (round(float(q), 1) for q in np.percentile(rates, (25, 50, 75)))
    return {"images_per_s": middle, "quartiles": [low, high]}


def in_turn(
    cases: dict[str, Callable[[], Any]], images: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Images a second of each case: median and quartiles over the rounds."""
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, call in cases.items():
            start = time.perf_counter()
            call()
            rates[name].append(images / (time.perf_counter() - start))
    return {name: summary(each) for name, each in rates.items()}


def pipelines(
    root: pathlib.Path, seed: int, batches: int, rounds: int
) -> dict[str, dict[str, dict[str, Any]]]:
    """Images a second of `train_batches`, once it runs."""
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for size in PIPELINE_SIZES:
        source = data.load("folder", root, image_size=size)
        rates: dict[str, list[float]] = {}
        for _ in range(rounds):
            for threads, workers in WAYS:
                where = f"{workers} workers" if workers else "this process"
                stream = source.train_batches(BATCH, seed=seed, threads=threads, workers=workers)
                for _ in range(4):  # more than were prepared before the first was asked for
                    next(stream)
                start = time.perf_counter()
                for _ in range(batches):
                    next(stream)
                rate = BATCH * batches / (time.perf_counter() - start)
                stream.close()
                rates.setdefault(f"{threads} threads, {where}", []).append(rate)
        result[str(size)] = {name: summary(each) for name, each in rates.items()}
    return result


def fed(root: pathlib.Path, seed: int, steps: int) -> dict[str, Any]:
    """The step of resnet-small at 64x64: alone, and waiting for its batches."""
    import jax
    import optax
    from flax import nnx

    source = data.StreamedImages.from_folder(root, image_size=64)
    model = models.build(
        "resnet-small", input_shape=source.input_shape, classes=source.num_classes, seed=seed
    )
    graph, params, *others = nnx.split(model, nnx.Param, ...)
    rest = others[0]
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(params: Any, rest: Any, opt_state: Any, images: Any, labels: Any) -> Any:
        def loss(params: Any) -> Any:
            network = nnx.merge(graph, params, rest, copy=True)
            logits = network(source.normalize(images))
            value = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
            return value, nnx.state(network, nnx.Not(nnx.Param))

        (value, rest), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), rest, opt_state, value

    def run(threads: int | None) -> tuple[float, float]:
        """Seconds a step, and those of them spent waiting; without threads nothing is fed."""
        state = params, rest, optimizer.init(params)
        stream = source.train_batches(BATCH, seed=seed, threads=threads or 1)
        batch, waited = next(stream), 0.0
        if threads is None:
            stream.close()
        for i in range(steps + 2):
            if i == 2:  # compiled, and the first batches were prepared
                begin, waited = time.perf_counter(), 0.0
            asked = time.perf_counter()
            if threads is not None:
                batch = next(stream)
            waited += time.perf_counter() - asked
            *state, value = step(*state, *batch)
            jax.block_until_ready(value)
        spent = time.perf_counter() - begin
        stream.close()
        return spent / steps, waited / steps

    cases: dict[str, int | None] = {"alone": None, "fed by 1 thread": 1, "fed by 2 threads": 2}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for _ in range(3):
        for name, threads in cases.items():
            times[name].append(run(threads))
    result: dict[str, Any] = {"network": "resnet-small", "input": "64x64x3", "batch": BATCH}
    for name, each in times.items():
        spent, waited = (statistics.median(t[i] for t in each) for i in (0, 1))
        result[name] = {
            "step_ms": round(1e3 * spent, 1),
            "images_per_s": round(BATCH / spent, 1),
            "waiting_share": round(waited / spent, 4),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=12, help="timed in each round")
    parser.add_argument("--steps", type=int, default=6, help="training steps timed in each run")
    parser.add_argument("--consumer", type=float, help="images a second to hold the rates against")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.time()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        files = make(root, args.images, args.seed)
        kilobytes = statistics.mean(file.stat().st_size for file in files) / 1e3
        some = files[: min(len(files), 100)]
        one = in_turn(stages(some), len(some), args.rounds)
        streams = pipelines(root, args.seed, args.batches, args.rounds)
        training = fed(root, args.seed, args.steps)
    spent = {name: 1e3 / rate["images_per_s"] for name, rate in one.items()}
    needed, read = spent["decode as needed, crop, resize to 224"], spent["read"]
    shares = {
        "read": round(read / (read + needed), 4),
        "decode": round(spent["decode"] / (read + needed), 4),
        "crop, resize, mirror": round((needed - spent["decode"]) / (read + needed), 4),
    }
    smaller = {
        str(size): round(
            spent[f"decode whole, crop, resize to {size}"]
            / spent[f"decode as needed, crop, resize to {size}"], 3
        )
        for size in SIZES
    }  # fmt: skip
    best = {size: max(rate["images_per_s"] for rate in rates.values())
            for size, rates in streams.items()}  # fmt: skip
    consumers = {"resnet-small at 64x64": (best["64"], training["alone"]["images_per_s"])}
    if args.consumer:
        consumers["given"] = (best["224"], args.consumer)
    result = {
        "seed": args.seed,
        "load": [round(load, 1), os.cpu_count()],
        "versions": {name: version(name) for name in ("grain", "pillow")},
        "images": {
            "number": args.images, "pixels": [WIDTH, HEIGHT], "quality": QUALITY,
            "mean_kilobytes": round(kilobytes, 1),
        },
        "one_thread": one,
        "shares_of_the_time_at_224": shares,
        "speed_up_of_decoding_as_needed": smaller,
        "pipeline": streams,
        "training": training,
        "ahead_of": {
            name: {"images_per_s": rate, "pipeline": have, "ratio": round(have / rate, 2)}
            for name, (have, rate) in consumers.items()
        },
    }  # fmt: skip
    for name, rate in one.items():
        print(f"{name:45s} {rate['images_per_s']:9.1f} images/s in one thread")
    for size, rates in streams.items():
        for name, rate in rates.items():
            print(f"pipeline at {size}, {name:32s} {rate['images_per_s']:9.1f} images/s")
    for name in ("alone", "fed by 1 thread", "fed by 2 threads"):
        row = training[name]
        print(f"step {name:20s} {row['step_ms']:8.1f} ms  {row['images_per_s']:8.1f} images/s  "
              f"waiting {row['waiting_share']:.1%}")  # fmt: skip
    for name, row in result["ahead_of"].items():
        print(f"{row['ratio']} times as fast as the consumer: {name}")
    print(f"written to {write('input_pipeline', result, started)}")


if __name__ == "__main__":
    main()
