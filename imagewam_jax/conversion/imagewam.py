"""Official ImageWAM checkpoints of the FLUX.2 family (spec imagewam_flux2, 8.4).

Flat names: `mixtures.video.transformer.*` is the backbone, `mixtures.action.*` the expert.
The blocks of the backbone stand in the file a second time without `transformer`; those
aliases can be stale (spec, gotcha 13) and are never read.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagewam_jax.conversion.flux2 import TRANSPOSE, action_expert_rules, flux2_rules
from imagewam_jax.conversion.mapping import Part, Rule, rule, to_tree
from imagewam_jax.models.imagewam import ImageWAMConfig

BACKBONE = "mixtures.video.transformer."
EXPERT = "mixtures.action."
PROPRIO = "proprio_encoder."
_ALIAS = re.compile(r"mixtures\.video\.(double|single)_blocks\.")


def imagewam_rules(config: ImageWAMConfig) -> list[Rule]:
    """Official names, with `proprio_encoder.*`, to the tree of `models.imagewam.ImageWAM`."""
    rules = _under(BACKBONE, "backbone", flux2_rules(config.backbone))
    rules += _under(EXPERT, "expert", action_expert_rules(config.expert, config.backbone))
    if config.proprio_dim is not None:
        rules += [
            rule(f"{PROPRIO}weight", "proprio_in.kernel", TRANSPOSE),
            rule(f"{PROPRIO}bias", "proprio_in.bias", "o -> o"),
        ]
    return rules


def policy_tree(
    config: ImageWAMConfig,
    mot: Mapping[str, np.ndarray],
    proprio_encoder: Mapping[str, np.ndarray] | None,
    like: Mapping[str, Any],
) -> dict[str, Any]:
    """Parameters of a policy from an official checkpoint's `mot` and `proprio_encoder`.

    Errors are those of `mapping.to_tree`.
    """
    tensors = {name: t for name, t in mot.items() if not _ALIAS.match(name)}
    tensors |= {PROPRIO + name: t for name, t in (proprio_encoder or {}).items()}
    return to_tree(imagewam_rules(config), tensors, like, "ImageWAM checkpoint")


def _under(prefix: str, path: str, rules: list[Rule]) -> list[Rule]:
    return [
        Rule(
            prefix + r.name,
            tuple(Part(f"{path}.{p.path}", p.pattern, p.sizes, p.width) for p in r.parts),
            r.axis,
            r.layers,
        )
        for r in rules
    ]
