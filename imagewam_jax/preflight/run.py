"""A run that is looked at before it begins: its config, and what several checks need, made once.

A check is a function of a `Run`. It raises a `UserError` for what is wrong (`SeveralErrors` for
several things), and returns what other checks can go on with.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from imagewam_jax.config.defaults import defaults
from imagewam_jax.config.loading import LoadedConfig
from imagewam_jax.errors import SeveralErrors, UserError
from imagewam_jax.storage.objects import AnyPath

Check = Callable[["Run"], Any]


class NotChecked(Exception):
    """A check could not be made; the message says what is missing for it."""


class Run:
    """What the checks of one run share.

    workdir: the run's folder; None: it is not decided yet.
    resume: whether the run is to go on from what is in the folder.
    notes: what does not stop the run and is worth a look, one line each.
    """

    def __init__(self, loaded: LoadedConfig, workdir: AnyPath | None = None, resume: bool = False):
        self.workdir, self.resume = workdir, resume
        self.notes: list[str] = []
        # As training has it, and as checkpoints keep it; what cannot be kept is not usable anyway.
        self._config = json.loads(json.dumps(loaded.config.to_dict(), default=repr))
        self._unusable = loaded.unusable
        self._made: dict[Check, Any] = {}

    def config(self, *fields: str) -> dict[str, Any]:
        """The config; of it a check may use these fields, or sections of fields. NotChecked: one of
        them has no usable value."""
        for field in fields:
            for name in sorted(self._unusable):
                if _within(name, field) or _within(field, name):
                    raise NotChecked(f"{name} has no usable value")
        return self._config

    def usable(self, *fields: str) -> bool:
        """Whether `config` returns."""
        with contextlib.suppress(NotChecked):
            self.config(*fields)
            return True
        return False

    def of(self, check: Check) -> Any:
        """What another check returned. NotChecked: it failed."""
        found = self.outcome(check)
        if isinstance(found, NotChecked):
            raise found
        if isinstance(found, UserError):
            raise NotChecked(f"{name_of(check)} failed")
        return found

    def note(self, text: str) -> None:
        self.notes.append(text)

    def outcome(self, check: Check) -> Any:
        """What a check returned, or the UserError or NotChecked that it raised; it runs once."""
        if check not in self._made:
            try:
                self._made[check] = check(self)
            except (UserError, NotChecked) as error:
                self._made[check] = error
        return self._made[check]


def name_of(check: Check) -> str:
    """How a report calls a check."""
    return check.__name__.replace("_", " ")


@contextlib.contextmanager
def about(field: str) -> Iterator[None]:
    """Errors that are raised within begin with the field that they are about, unless they name a
    field themselves."""
    try:
        yield
    except UserError as error:
        errors = error.errors if isinstance(error, SeveralErrors) else (error,)
        raise SeveralErrors([_naming(e, field) for e in errors]) from error


_FIELD = re.compile(rf"\b({'|'.join(defaults())})\.[a-z_]+")


def _naming(error: UserError, field: str) -> UserError:
    return error if _FIELD.search(str(error)) else type(error)(f"{field}: {error}")


def _within(name: str, section: str) -> bool:
    return name == section or name.startswith(f"{section}.")
