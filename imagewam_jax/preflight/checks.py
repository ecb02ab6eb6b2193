"""All checks of a run, in the order in which they are reported.

A new check is a function of a `Run` (`preflight.run`) and a line here. What it needs of other
checks it takes from `run.of(check)`, and fields from `run.config(field)`: where these are not to be
had, the check is reported as one that could not be made.
"""

from collections.abc import Mapping
from types import MappingProxyType

from imagewam_jax.preflight import data, devices, folder, model, positions, simulator, text
from imagewam_jax.preflight.run import Check

# What would stop training, by the section of the report that it is in.
TRAINING: Mapping[str, tuple[Check, ...]] = MappingProxyType(
    {
        "model": (
            model.policy,
            model.trained_parts,
            model.known_actions,
            model.compute_dtype,
            model.initial_weights,
            model.chunk_of_actions,
        ),
        "images": (
            model.images,
            model.autoencoder,
            model.latent_channels,
            model.latent_grid,
            model.autoencoder_weights,
        ),
        "data": (
            data.rows,
            data.cameras,
            data.widths,
            data.unlabelled_steps,
            data.bad_frames,
            model.normalization,
            data.pooled_statistics,
            data.folders,
            data.room_for_the_index,
            data.datasets,
            data.stored_images,
            data.stored_keys,
            data.split_names,
            data.training_samples,
            data.validation_samples,
            data.episode_lengths,
        ),
        "text": (text.prompt, text.text_features, text.text_length, positions.positions),
        "devices": (
            devices.mesh,
            devices.batch,
            devices.compiler,
            devices.attention,
            devices.training_state,
            devices.metrics,
        ),
        "folder": (
            folder.run_folder,
            folder.resumed_config,
            folder.resumed_data,
            folder.room_for_checkpoints,
        ),
    }
)

# What would stop the evaluation of a trained policy; training may run on another machine.
EVALUATION: Mapping[str, tuple[Check, ...]] = MappingProxyType(
    {"evaluation": (data.held_out_samples, simulator.simulator, simulator.robot)}
)
