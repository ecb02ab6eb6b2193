"""The contestants of the benchmark, ours and PyTorch, each for a process of its own.

A contestant is a dictionary of functions without arguments; one call is one measurement. All start
from the same raw NumPy data and end with the result on the host.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import torch

from benchmarks.torch_imagewam import Draws, Sample, TorchImageWAM
from benchmarks.torch_policy import PolicyAssets, TorchTrainer, load_params
from benchmarks.workload import Workload
from imagewam_jax.checkpoints.assets import asset_trees
from imagewam_jax.models.parameters import policy_builder
from imagewam_jax.models.sharding import make_mesh
from imagewam_jax.policy.policy import Policy
from imagewam_jax.training.step import (
    abstract_state,
    init_state,
    jit_train_step,
    step_settings,
)

TASKS = ("act", "train")
Call = Callable[[], np.ndarray]
Calls = dict[str, Call]


def jax_calls(work: Workload, tasks: Sequence[str] = TASKS) -> Calls:
    """`act` and `train` as `imagewam evaluate` and `imagewam train` run them.

    tasks: those to prepare. Each keeps weights of its own, and a GPU may not hold both.
    """
    settings = step_settings(work.config, work.policy)

    def make_act() -> Call:
        metadata = {"config": work.config, "prompts": work.prompts, "datasets": ["random"]}
        metadata["statistics"] = {"random": {}}
        params = jax.tree.map(lambda x: x.astype(settings.compute_dtype), work.params)
        policy = Policy(policy_builder(work.policy)(params), work.assets, metadata, 0)
        return lambda: policy.act(work.observations, work.noise)

    def make_train() -> Call:
        mesh = make_mesh(work.config["mesh"], jax.devices()[:1])
        step = jit_train_step(settings, abstract_state(settings, mesh))
        state = jax.jit(init_state, static_argnums=0)(settings, {})

        def train() -> np.ndarray:
            nonlocal state
            state, metrics = step(state, work.batch, work.assets)
            return np.asarray(metrics["loss"])

        return train

    makers = {"act": make_act, "train": make_train}
    return {task: makers[task]() for task in tasks}


def torch_calls(
    work: Workload, compiled: bool, device: str = "cpu", tasks: Sequence[str] = TASKS
) -> Calls:
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

    def make_act() -> Call:
        model, euler_steps = new_model(), work.config["acting"]["euler_steps"]
        for parameter in model.parameters() if half else ():
            parameter.data = parameter.data.bfloat16()

        def raw_actions(images, state, text_id, noise):
            context = assets.context(assets.encode(images[:, 0]), text_id, state)
            return assets.raw_actions(model.act(context, noise, euler_steps))

        if compiled:
            raw_actions = torch.compile(raw_actions)

        @torch.inference_mode()
        def act() -> np.ndarray:
            o = work.observations
            arrays = (o.images, o.state, o.text_id, work.noise)
            with autocast():
                actions = raw_actions(*(torch.from_numpy(x).to(device) for x in arrays))
            return actions.float().cpu().numpy()

        return act

    def make_train() -> Call:
        trainer = TorchTrainer(new_model(), assets, work.config)
        loss = torch.compile(trainer.loss) if compiled else trainer.loss

        def autocast_loss(sample: Sample, draws: Draws) -> torch.Tensor:
            with autocast():
                return loss(sample, draws)

        trainer.loss = autocast_loss

        def train() -> np.ndarray:
            batch = {k: torch.from_numpy(v).to(device) for k, v in work.batch.items()}
            return trainer.step(batch).cpu().numpy()

        return train

    makers = {"act": make_act, "train": make_train}
    return {task: makers[task]() for task in tasks}
