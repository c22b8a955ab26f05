"""Why a channel cannot be removed: what is known as a reason, and where it was found."""

import dataclasses
import enum


class Reason(enum.Enum):
    """What keeps a channel; the value is the message, `{}` stands for what names the place.

    Reasons are compared by identity: `why.reason is Reason.OUTPUT`.
    """

    # What the network is given, and what it gives.
    DATA = "an axis of the data"  # nothing that a reader would ask about
    INPUT = "an input of the network"
    OUTPUT = "an output of the network"
    IGNORED = "named by ignore"
    CONSTANT = "laid over a constant array of the program, which cannot be cut"
    # What the labels of an axis come to.
    UNUSED = "not used"
    NO_MAKER = "no parameter makes it"
    ALL_TOGETHER = "its positions can only go all together"
    ONE_BLOCK = "removed only together with its neighbours, as one block"
    # What an operation does with the axis. Two placeholders: what it is, and where.
    NOT_FOLLOWED = "goes into {}, which is not followed, at {}"
    REDUCED = "reduced over, all positions together, by {} at {}"
    CUT = "cut at fixed positions by {} at {}"
    # One placeholder: where.
    RANDOM = "random numbers are drawn in its shape at {}: trace it in evaluation mode"
    NUMBERED = "numbered at {}"
    COMBINED = "combined with data at {}"
    CARRIED = "carried through the loop at {}"
    SCANNED = "scanned over at {}"
    BRANCH = "one branch at {}"
    LOOKED_UP = "looked up by index at {}"
    INDEX = "used as an index at {}"
    WRITTEN_BY_INDEX = "written by index at {}"
    WRITTEN = "written into data at {}"
    POOLED = "pooled over at {}"
    SUMMED = "summed over at {}"
    ACTIVATIONS_SUMMED = "summed over between two activations at {}"
    CUMULATED = "summed along in order at {}"
    MULTIPLIED = "multiplied with data at {}"
    CONVOLVED_OVER = "convolved over at {}"
    CONVOLVED = "convolved with data at {}"
    SORTED = "sorted at {}"
    TRANSFORMED = "transformed as a whole by a Fourier transform at {}"
    EXPERTS = "chosen among by a ragged product at {}"
    SHARDED = "parted among devices at {}"
    STRIDED = "cut with a stride at {}"
    RESHAPED = "reshaped at {}"
    RESHAPED_LARGE = "reshaped together with large axes at {}"
    MERGED = "merged with another channel axis at {}"
    JOINED = "joined to data at {}"
    PADDED = "padded at {}"

    def at(self, *details: str) -> "Why":
        """The reason with what names the place.

        Args:
            details: one for each placeholder of the message; the last is a source line.
        """
        return Why(self, details)


@dataclasses.dataclass(frozen=True)
class Why:
    """A reason, and the details that its message names.

    Attributes:
        reason: what keeps the channel.
        details: one for each placeholder of its message.

    Example:
        >>> from dessilbi_jax.dependency import Reason
        >>> why = Reason.POOLED.at("net.py:12 (block)")
        >>> str(why), why.reason is Reason.POOLED
        ('pooled over at net.py:12 (block)', True)
    """

    reason: Reason
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.reason.value.format(*self.details)


DATA = Why(Reason.DATA)
