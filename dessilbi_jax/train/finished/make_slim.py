"""Cutting a ticket out of a trained network, with the proof, the table and the files."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import dessilbi_jax as dl
from dessilbi_jax import files, provenance, run_files
from dessilbi_jax.slimming.compare import Differs, difference
from dessilbi_jax.train.feeds import Rows
from dessilbi_jax.train.finished.latency import measure
from dessilbi_jax.train.finished.trained import (
    RETRAINED,
    closed_masks,
    find_run,
    fitted,
    load_run,
    load_trained,
    on_one_device,
    target_of,
    ticket_facts,
)
from dessilbi_jax.train.run_folder import folder
from dessilbi_jax.train.step import (
    Network,
    make_evaluate,
    split_network,
)

KIND = "slim"
_EXAMPLES = 32


class Variant(NamedTuple):
    """A network that is timed and tested: its functions and its arrays."""

    network: Network
    params: Any
    stats: Any

    @property
    def parameters(self) -> int:
        """Number of parameters, without batch statistics."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def bytes(self) -> int:
        """Size of all arrays."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.params, self.stats)))

    def caller(self, inputs: jax.Array) -> Callable[[], jax.Array]:
        """The compiled forward pass on these inputs, images of bytes or tokens."""

        @jax.jit
        def forward(params: Any, stats: Any, x: jax.Array) -> jax.Array:
            return self.network.evaluate(params, stats, self.network.normalise(x))

        params, stats = jax.device_put((self.params, self.stats))
        return lambda: forward(params, stats, inputs)


def make_slim(
    file: str | Path,
    *,
    params_from: str | Path | None = None,
    round_to: int = 1,
    batches: Sequence[int] = (1, 128),
    out: str | Path | None = None,
    run: str | Path | None = None,
    data_dir: str | Path | None = None,
    overwrite: bool = False,
    command: str = "",
) -> dict[str, Any]:
    """Cuts a ticket out of a network and writes the smaller one into a folder.

    The smaller network is held against the masked one on all held-out images, and dense, masked
    and slim are timed in turns and tested. The folder gets params.safetensors, plan.json,
    card.json, forward.jaxexport (from images of bytes to logits, for JAX alone) and result.json, at
    once or, on any error, not at all.

    Args:
        file: a ticket of `dessilbi ticket`.
        params_from: folder of a run or of a retrained network; by default the ticket's run.
        round_to: widths become multiples of it.
        batches: batch sizes to time.
        out: the folder, by default `slim` beside the ticket.
        run: the run's folder, where it has moved.
        data_dir: as `data.load` has it; by default where the run found its images.
        overwrite: replace a folder that this wrote.
        command: the command line, kept in result.json.

    Returns:
        What result.json holds: `networks` with `dense`, `masked` and `slim`, each with
        `parameters`, `flops` (for one image), `bytes`, `test_accuracy` and `latency` by batch
        size; `difference`, the largest of an output from the masked network's over the largest
        output, on `compared` held-out images; `channels` kept and in all.

    Raises:
        FileNotFoundError: no ticket, run or images.
        FileExistsError: the folder is there.
        ValueError: a ticket that does not fit, leaves no channel empty, or outputs that differ.
    """
    file = Path(file)
    if not batches or any(batch < 1 for batch in batches):
        raise ValueError(f"batch sizes must be whole numbers of at least 1, got {list(batches)}")
    ticket = dl.Ticket.load(file)
    folder_of_run = find_run(ticket, file, run)
    target = target_of(file, out, run_files.SLIM)
    ours: dict[str, Any] = {"overwrite": overwrite, "kind": KIND, "own": run_files.SLIM_FILES}
    folder.check_target(target, **ours)
    trained = load_trained(Path(params_from) if params_from is not None else folder_of_run)
    own = fitted(ticket, trained)
    groups = trained.channels()
    masks = closed_masks(own, groups, trained.params)
    source = trained.facts.load(data_dir)
    held = on_one_device(trained.facts.split(source)[1], source, trained.config)
    first = next(iter(held))[0]

    # The masked network, and the one cut out of it.
    masked_params = dl.project(jax.tree.map(jnp.asarray, trained.params), masks)
    masked = trained._replace(params=masked_params)
    network = trained.network()
    examples = network.normalise(first[:_EXAMPLES])
    # Compared once, below, on more than these examples.
    small = dl.slim(masked.model(), own, examples, groups=groups, round_to=round_to, check=False)
    if not small.plan.keep:
        raise ValueError(_nothing_to_cut(own, trained.config.structure))
    small_network, *arrays = split_network(small.model, trained.facts.mean, trained.facts.std)
    dense = trained if trained.retrained is None else load_run(folder_of_run)
    if dense.facts.dataset != trained.facts.dataset:
        dense = trained  # with another head: only its size is of interest
    variants = {
        "dense": Variant(network, dense.params, dense.stats),
        "masked": Variant(network, masked_params, trained.stats),
        "slim": Variant(small_network, *arrays),
    }

    # Equal outputs on all held-out images; time; the test images, once.
    difference = _difference(variants["masked"], variants["slim"], held)
    latency = {
        str(batch): measure(
            {
                name: variant.caller(jnp.resize(first, (batch, *first.shape[1:])))
                for name, variant in variants.items()
            }
        )
        for batch in batches
    }
    test = on_one_device(source.test_part(), source, trained.config)
    big, little = make_evaluate(network), make_evaluate(small_network)
    evaluators = {"dense": big, "masked": big, "slim": little}
    result = {
        "kind": KIND,
        "preset": trained.preset,
        "run": str(folder_of_run.resolve()),
        "params_from": "run" if trained.retrained is None else RETRAINED,
        "from": None if trained.retrained is None else trained.retrained["from"],
        "config": trained.config.to_json(),
        "data": trained.facts.to_json(),
        "ticket": ticket_facts(ticket, file),
        "round_to": round_to,
        "difference": difference,
        "compared": len(held),
        "channels": _channels(small),
        "networks": {
            name: {
                "parameters": variant.parameters,
                "flops": small.flops[1 if name == "slim" else 0],
                "bytes": variant.bytes,
                "test_accuracy": evaluators[name](variant.params, variant.stats, test)[0],
                "latency": {batch: times[name] for batch, times in latency.items()},
            }
            for name, variant in variants.items()
        },
        "command": command,
        "versions": provenance.versions(),
        "machine": provenance.machine(),
    }
    with folder.written_at_once(target, **ours) as part:
        told = (
            "preset",
            "config",
            "data",
            "ticket",
            "round_to",
            "params_from",
            "from",
            "difference",
        )
        dl.save_slim(
            small,
            part,
            first[:_EXAMPLES],
            fn=lambda model, x: model(network.normalise(x)),
            card={"kind": KIND, **{name: result[name] for name in told}},
        )
        files.write_json(part / run_files.RESULT, result)
    return result


def _difference(masked: Variant, slim: Variant, held: Rows) -> float:
    """Returns the largest difference of an output, over the largest output of its batch.

    Raises:
        ValueError: it is more than rounding explains.
    """
    worst = 0.0
    for inputs, _ in held:
        expected, got = (v.caller(inputs)() for v in (masked, slim))
        try:
            worst = max(worst, difference(expected, got))
        except Differs as error:
            raise ValueError(
                f"the slim network is not the masked one: {error}; nothing was written"
            ) from None
    return worst


def _channels(small: dl.Slim) -> list[int]:
    """Returns how many channels are kept, and how many there were."""
    return [int(small.groups.kept_by(small.plan).sum()), small.groups.count]


def _nothing_to_cut(ticket: dl.Ticket, structure: str) -> str:
    """Returns why there is nothing to cut, and what to do."""
    if structure == "channels":
        return "nothing to cut: the ticket keeps every channel; ask for a smaller one"
    return (
        f"nothing to cut: the ticket keeps {ticket.density:.1%} of the structured weights, but "
        f"its zeros leave no channel empty (the groups of the run are its {structure}). The "
        "network can be masked, not made smaller: train with --structure channels and take a "
        "ticket of that run"
    )
