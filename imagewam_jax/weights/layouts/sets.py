"""Finds the weights of a layout among the tensors of a file, whatever their names begin with.

Trainers and compilers wrap a model, and its tensors then have further words in their names; files
can hold several models, or one twice, such as a moving average. A name is read as one of a layout
only if that leaves no tensor out; where several sets of weights are there, the user has to choose.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import Renamed, TensorSource
from imagewam_jax.weights.layouts.layout import Layout
from imagewam_jax.weights.layouts.unusable import refuse_unusable

# What data parallelism, compilation and activation checkpoints put into names, at any depth. No
# layout has these words.
WRAPPERS = frozenset(
    (
        "module",
        "_module",
        "_orig_mod",
        "_fsdp_wrapped_module",
        "_fpw_module",
        "_checkpoint_wrapped_module",
        "_forward_module",
    )
)
ROOT = "."  # how a user names the set of weights that has no prefix
# What moving averages store beside the weights, as tensors of one number.
_COUNTERS = frozenset(("n_averaged", "num_updates", "initted", "decay", "step"))
_AVERAGE = re.compile(r"(^|[._])(ema|averaged?|swa|shadow)([._]|$)")


class FoundWeights(NamedTuple):
    """The tensors of one set of weights, under the names of its layout.

    prefix: what their names began with.
    fits_choice: whether there were several sets, or the user chose the only one.
    notes: what was left out of the names, and which tensors are not read.
    """

    layout: Layout
    tensors: TensorSource
    prefix: str
    fits_choice: bool
    notes: tuple[str, ...]


class _Set(NamedTuple):
    """A set of weights: those of a layout below a prefix. `topless`: its names lack the word that
    the layout's begin with."""

    layout: Layout
    prefix: str
    topless: bool

    @property
    def label(self) -> str:
        return self.prefix.removesuffix(".") or ROOT

    def name(self, name: str) -> str | None:
        """A tensor's name in the layout; None if it is not below the prefix."""
        if not name.startswith(self.prefix):
            return None
        name = name.removeprefix(self.prefix)
        tops = tuple(top for top, _ in self.layout.modules)
        return tops[0] + name if self.topless and not name.startswith(tops) else name


def unwrapped(name: str) -> str:
    """A tensor's name without the words of wrappers."""
    return ".".join(word for word in name.split(".") if word not in WRAPPERS)


def find_weights(
    source: TensorSource, layouts: Sequence[Layout], where: str, choice: str | None = None
) -> FoundWeights:
    """Find the weights of one of the layouts in some tensors.

    choice: the prefix of the set to take if there are several, "." for the one without a prefix.
    ConversionError: there are none, or several and no choice, or they are no whole weights.
    """
    tensors, notes = _without_wrappers(source, layouts)
    sets = _find_sets(tensors.specs, layouts)
    if not sets:
        if source.specs:
            refuse_unusable(source.specs)
        raise _unknown(source, layouts, where)
    of = {s: _below(s, sets, tensors.specs) for s in sets}
    several = len(of[sets[0]]) < len(tensors.specs)
    if several and choice is None:
        others = [name for name in tensors.specs if name not in of[sets[0]]]
        raise _several(of, others, where)
    chosen = _chosen(sets, choice, where) if several else sets[0]
    others = [name for name in tensors.specs if name not in of[chosen]]
    _check_complete(chosen, of, others, where)
    if chosen.prefix:
        notes.append(f"names are read without the prefix {chosen.prefix}")
    if others:
        notes.append(f"not read: {len(others)} other tensors ({_some(others)})")
    wanted = of[chosen]
    found = Renamed(tensors, lambda name: chosen.name(name) if name in wanted else None)
    refuse_unusable(found.specs)
    changed = tensors is not source or found.specs.keys() != source.specs.keys()
    found = found if changed else source
    fits = several or choice == chosen.label
    return FoundWeights(chosen.layout, found, chosen.prefix, fits, tuple(notes))


def _without_wrappers(
    source: TensorSource, layouts: Sequence[Layout]
) -> tuple[TensorSource, list[str]]:
    """The tensors under names without wrappers and without the counters of moving averages, and
    what there is to say of it."""
    counters = {
        name
        for name, spec in source.specs.items()
        if name.split(".")[-1] in _COUNTERS and len(source.specs) > 1 and spec.shape in ((), (1,))
    }
    notes = [f"not read: {_some(sorted(counters))}"] if counters else []
    plain = {name: unwrapped(name) for name in source.specs if name not in counters}
    if len(set(plain.values())) < len(plain):  # a wrapped model beside a plain one
        plain = {name: name for name in plain}
    for layout in layouts:
        for top, follows in layout.modules:
            plain = _without_inner(plain, top, follows)
    changed = [f"{new} for {old}" for old, new in plain.items() if new != old]
    if changed:
        notes.append(f"names are read without the words of wrappers: {changed[0]}")
    if not changed and not counters:
        return source, notes
    return Renamed(source, plain.get), notes


def _without_inner(names: dict[str, str], top: str, follows: str) -> dict[str, str]:
    """Leave out the words between that of a module and what follows it, if they are the same in all
    names."""
    inner = re.compile(rf"((?:.*\.)?{re.escape(top)})((?:\w+\.)+?)({follows}.*)")
    matches = {old: match for old, new in names.items() if (match := inner.fullmatch(new))}
    if len({match[2] for match in matches.values()}) != 1:
        return names
    shorter = names | {old: match[1] + match[3] for old, match in matches.items()}
    return shorter if len(set(shorter.values())) == len(names) else names


def _find_sets(names: Iterable[str], layouts: Sequence[Layout]) -> list[_Set]:
    """All sets of weights, but for those that are part of another set, as the backbone of a policy
    is."""
    found = sorted(_all_sets(set(names), layouts), key=lambda s: s.prefix)
    return [
        s
        for s in found
        if not any(other.name(s.prefix) in other.layout.contains for other in found)
    ]


def _all_sets(names: set[str], layouts: Sequence[Layout]) -> Iterator[_Set]:
    for layout in layouts:
        for top in ("", *(top for top, _ in layout.modules[:1])):
            first, *rest = (name.removeprefix(top) for name in layout.signature)
            for name in sorted(names):
                prefix = name.removesuffix(first)
                if prefix == name or (prefix and not prefix.endswith(".")):
                    continue
                if top and prefix.endswith(top):
                    continue  # the whole name is there
                if any(prefix + other in names for other in layout.lacks):
                    continue
                if all(prefix + other in names for other in rest):
                    yield _Set(layout, prefix, bool(top))


def _below(s: _Set, sets: Sequence[_Set], names: Iterable[str]) -> set[str]:
    """The names of one set: those below its prefix and not below the longer one of another set."""
    inner = [o.prefix for o in sets if o.prefix != s.prefix and o.prefix.startswith(s.prefix)]
    return {n for n in names if n.startswith(s.prefix) and not n.startswith(tuple(inner))}


def _chosen(sets: Sequence[_Set], choice: str, where: str) -> _Set:
    by_label = {s.label: s for s in sets}
    # A set is listed under its prefix without wrappers, but a user can have seen the whole one.
    for label in (choice, choice.removesuffix("."), unwrapped(choice.removesuffix("."))):
        if label in by_label:
            return by_label[label]
    raise ConversionError(
        f"{where}: has no weights under {choice!r}; it has some under "
        f"{' and '.join(repr(s.label) for s in sets)}"
    )


def _check_complete(
    chosen: _Set, of: dict[_Set, set[str]], others: Sequence[str], where: str
) -> None:
    """ConversionError: there are tensors for the chosen set, outside of it, which it lacks."""
    have = {chosen.name(name) for name in of[chosen]}
    rivals = [s for s in of if s.layout is chosen.layout and s != chosen]
    lacking = {n for rival in rivals for name in of[rival] if (n := rival.name(name)) not in have}
    free = [name for name in others if not any(name in names for names in of.values())]
    tops = [top for top, _ in chosen.layout.modules if not any(n.startswith(top) for n in have)]
    lacking |= {name for name in free for top in tops if f".{top}" in f".{name}"}
    if lacking:
        raise ConversionError(
            f"{where}: the weights under {chosen.label!r} lack {len(lacking)} tensors that are "
            f"elsewhere in the file ({_some(sorted(lacking))}): save them with these"
        )


def _several(of: dict[_Set, set[str]], others: Sequence[str], where: str) -> ConversionError:
    listed = "; ".join(
        f"{s.label!r}: {len(names)} tensors, {s.layout.name}"
        + (" (a moving average, EMA)" if _AVERAGE.search(s.prefix) else "")
        for s, names in of.items()
    )
    how = " or ".join(f"--set weights={s.label}" for s in of)
    if len(of) == 1:
        beside = f"and beside them {len(others)} other tensors ({_some(others)})"
        return ConversionError(
            f"{where}: has weights under {listed}, {beside}, which a conversion would lose: give "
            f"{how} to leave them out"
        )
    return ConversionError(
        f"{where}: has {len(of)} sets of weights, under {listed}: give one of them as {how}"
    )


def _unknown(source: TensorSource, layouts: Sequence[Layout], where: str) -> ConversionError:
    if not source.specs:
        return ConversionError(f"{where}: holds no tensors under names")
    known = "; ".join(layout.name for layout in layouts)
    some = ", ".join(sorted(source.specs)[:4])
    return ConversionError(
        f"{where}: {len(source.specs)} tensors ({some}, ...) of no known layout; known are: {known}"
    )


def _some(names: Sequence[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
