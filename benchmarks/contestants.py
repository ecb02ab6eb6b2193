"""The contestants of the benchmark, ours and PyTorch, each for a process of its own.

A contestant is a dictionary of functions without arguments; one call is one measurement. All start
from the same raw NumPy data and end with the result on the host.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks.torch_imagewam import Draws, Sample, TorchImageWAM
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
    settings = step_settings(work.config, work.policy)
    params = jax.tree.map(lambda x: x.astype(settings.compute_dtype), work.params)
    policy = Policy(policy_builder(work.policy)(params), work.assets, metadata, 0)

    @functools.cache
    def begun() -> list:
        """The compiled step and the state, made when they are first wanted."""
        mesh = make_mesh(work.config["mesh"], jax.devices()[:1])
        step = jit_train_step(settings, abstract_state(settings, mesh))
        return [step, jax.jit(init_state, static_argnums=0)(settings, {})]

    def train() -> np.ndarray:
        step, state = begun()
        begun()[1], metrics = step(state, work.batch, work.assets)
        return np.asarray(metrics["loss"])

    return {"act": lambda: policy.act(work.observations, work.noise), "train": train}


def torch_calls(work: Workload, compiled: bool, device: str = "cpu") -> Calls:
    """The same in PyTorch, on one of its devices.

    compiled: prefill with all Euler steps is one compiled graph, and the loss another. Where the
    config computes in bfloat16, acting has its weights in it and training is under autocast.
    """
    if device != "cpu":  # with one that is set, every call goes through Python once more
        torch.set_default_device(device)
    assets = PolicyAssets(asset_trees(work.assets), work.assets.autoencoder.factor).to(device)
    rows, columns = (
        side // work.assets.autoencoder.factor for side in work.config["data"]["image_size"]
    )
    half = work.config["train"]["compute_dtype"] == "bfloat16"
    autocast = functools.partial(torch.autocast, device, torch.bfloat16, enabled=half)

    def new_model() -> TorchImageWAM:
        model = TorchImageWAM(work.policy, (rows, columns), work.assets.text.shape[1])
        load_params(model, work.params)
        return model

    @functools.cache
    def trainer() -> TorchTrainer:
        made = TorchTrainer(new_model(), assets, work.config)
        loss = torch.compile(made.model.training_loss) if compiled else made.model.training_loss

        def autocast_loss(sample: Sample, draws: Draws) -> torch.Tensor:
            with autocast():
                return loss(sample, draws)

        made.loss = autocast_loss
        return made

    euler_steps = work.config["acting"]["euler_steps"]

    @functools.cache
    def acting() -> Callable[..., torch.Tensor]:
        """From raw arrays to actions. The model is made outside of what is compiled."""
        model = new_model()
        for parameter in model.parameters() if half else ():
            parameter.data = parameter.data.bfloat16()

        def raw_actions(images, state, text_id, noise):
            context = assets.context(assets.encode(images[:, 0]), text_id, state)
            return assets.raw_actions(model.act(context, noise, euler_steps))

        return torch.compile(raw_actions) if compiled else raw_actions

    @torch.inference_mode()
    def act() -> np.ndarray:
        o = work.observations
        arrays = (o.images, o.state, o.text_id, work.noise)
        with autocast():
            actions = acting()(*(torch.from_numpy(x).to(device) for x in arrays))
        return actions.float().cpu().numpy()

    def train() -> np.ndarray:
        batch = {k: torch.from_numpy(v).to(device) for k, v in work.batch.items()}
        return trainer().step(batch).cpu().numpy()

    return {"act": act, "train": train}
