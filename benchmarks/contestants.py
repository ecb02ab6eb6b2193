"""The contestants of the benchmark, ours and PyTorch, each for a process of its own.

A contestant is a dictionary of functions without arguments; one call is one measurement. All start
from the same raw NumPy data and end with the result on the host.
"""

from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks.torch_imagewam import TorchImageWAM
from benchmarks.torch_policy import PolicyAssets, TorchTrainer, load_params
from benchmarks.workload import Workload
from imagewam_jax.checkpoints.assets import asset_trees
from imagewam_jax.models.parameters import policy_builder
from imagewam_jax.policy.policy import Policy
from imagewam_jax.training.sharding import make_mesh
from imagewam_jax.training.step import (
    abstract_state,
    init_state,
    jit_train_step,
    step_settings,
)

Calls = dict[str, Callable[[], np.ndarray]]


def jax_calls(work: Workload) -> Calls:
    """`act` and `train` as `imagewam evaluate` and `imagewam train` run them."""
    metadata = {"config": work.config, "prompts": work.prompts, "datasets": ["random"]}
    metadata["statistics"] = {"random": {}}
    policy = Policy(policy_builder(work.policy)(work.params), work.assets, metadata, 0)
    settings = step_settings(work.config, work.policy)
    mesh = make_mesh(work.config["mesh"], jax.devices()[:1])
    step = jit_train_step(settings, abstract_state(settings, mesh))
    state = jax.jit(init_state, static_argnums=0)(settings, {})

    def train() -> np.ndarray:
        nonlocal state
        state, metrics = step(state, work.batch, work.assets)
        return np.asarray(metrics["loss"])

    return {"act": lambda: policy.act(work.observations, work.noise), "train": train}


def torch_calls(work: Workload, compiled: bool) -> Calls:
    """The same in PyTorch.

    compiled: prefill with all Euler steps is one compiled graph, and the loss another.
    """
    assets = PolicyAssets(asset_trees(work.assets), work.assets.autoencoder.factor)
    rows, columns = (
        side // work.assets.autoencoder.factor for side in work.config["data"]["image_size"]
    )
    models = []
    for _ in ("act", "train"):  # acting keeps its weights while training changes its own
        model = TorchImageWAM(work.policy, (rows, columns), work.assets.text.shape[1])
        load_params(model, work.params)
        models.append(model)
    acting, trained = models
    euler_steps = work.config["acting"]["euler_steps"]

    def raw_actions(images, state, text_id, noise):
        context = assets.context(assets.encode(images[:, 0]), text_id, state)
        return assets.raw_actions(acting.act(context, noise, euler_steps))

    trainer = TorchTrainer(trained, assets, work.config)
    if compiled:
        raw_actions = torch.compile(raw_actions)
        trainer.loss = torch.compile(trained.training_loss)

    @torch.inference_mode()
    def act() -> np.ndarray:
        o = work.observations
        arrays = map(torch.from_numpy, (o.images, o.state, o.text_id, work.noise))
        return raw_actions(*arrays).numpy()

    def train() -> np.ndarray:
        return trainer.step({k: torch.from_numpy(v) for k, v in work.batch.items()}).numpy()

    return {"act": act, "train": train}
