"""What a run does about losses and gradients that are not finite: it skips the step, or stops."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.errors import NotFiniteError

# The metrics that say where a number stopped to be finite, in words.
STREAMS = {
    "target_loss": "target loss",
    "action_loss": "action loss",
    "grad_norm_backbone": "gradient of the backbone",
    "grad_norm_expert": "gradient of the expert",
}
ADVICE = (
    "the newest checkpoint, if any, is from before; try a lower optimizer.learning_rate, or let "
    "the run skip some such steps with train.skip_not_finite"
)


class FiniteSteps:
    """Looks at the metrics of every step, once its device has them, so that nothing waits for them.

    They are the same on all hosts, which therefore stop alike.

    allowed: how many steps of the run may be skipped; with any, `train_step` skips them.
    skipped: how many were, by the processes before this one too.
    """

    def __init__(self, allowed: int, skipped: int):
        self.allowed, self.skipped = allowed, skipped
        self._last: tuple[int, Mapping[str, Float[Array, ""]]] | None = None

    def dispatched(self, step: int, metrics: Mapping[str, Float[Array, ""]]) -> None:
        """Check the step before, which has ended when this one was given to the device.

        NotFiniteError: it was not finite, and no more steps may be skipped.
        """
        self.check()
        self._last = step, metrics

    def check(self) -> None:
        """Wait for the last step and check it. Errors are those of `dispatched`."""
        if self._last is None:
            return
        (step, metrics), self._last = self._last, None
        values = jax.device_get(dict(metrics))
        if np.isfinite(list(values.values())).all():
            return
        bad = [what for name, what in STREAMS.items() if not np.isfinite(values[name])]
        shown = f"step {step}: not finite are {', '.join(bad or ['the gradients'])}"
        if self.skipped >= self.allowed:
            limit = f"; {self.skipped} steps were skipped already" if self.allowed else ""
            raise NotFiniteError(f"{shown}{limit}; {ADVICE}")
        self.skipped += 1
        if jax.process_index() == 0:
            print(f"{shown}; skipped, the {self.skipped}. of at most {self.allowed}")

    def check_validation(self, step: int, losses: Sequence[Mapping[str, Float[Array, ""]]]) -> None:
        """NotFiniteError: a loss on held-out samples is not finite."""
        for number, values in enumerate(jax.device_get([dict(row) for row in losses])):
            bad = [name.replace("_", " ") for name in values if not np.isfinite(values[name])]
            if bad:
                raise NotFiniteError(
                    f"validation after step {step}: not finite are {', '.join(bad)} of held-out "
                    f"batch {number}; {ADVICE}"
                )
