"""The names of the files in a run folder."""

import re

CONFIG = "config.json"
METRICS = "metrics.jsonl"
PATH = "path.npz"
NORMS = "norms.npz"
CHECKPOINTS = "checkpoints"
RESULT = "result.json"
REPORT = "report.html"
WEIGHTS = "weights"
TICKET = "ticket.npz"
RETRAINED = "retrained"
SLIM = "slim"
LOCK = "run.lock"
OURS = {
    CONFIG, METRICS, PATH, PATH + ".previous", NORMS, CHECKPOINTS, RESULT, REPORT, WEIGHTS,
    TICKET, RETRAINED, SLIM, LOCK,
}  # fmt: skip
# What a run that was killed while writing can leave behind.
_NAMES = "|".join(map(re.escape, sorted(OURS)))
UNFINISHED = re.compile(rf"\.?({_NAMES}|\d+\.safetensors)(\.\d+)?\.(part|tmp)")
