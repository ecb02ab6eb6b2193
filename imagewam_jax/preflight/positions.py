"""Do the sizes that a small example chose for itself fit the pictures and prompts of this run?"""

from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.preflight.model import latent_grid, sizes
from imagewam_jax.preflight.run import NotChecked, Run
from imagewam_jax.preflight.text import text_length

PATCH_SIDE = 128  # pixels of images that a linear autoencoder of patches is made for


def positions(run: Run) -> None:
    """No rotary embedding repeats itself within a prompt or a picture, and a patch autoencoder has
    small pictures."""
    found = run.of(sizes).backbone
    config, (rows, columns) = run.config("autoencoder"), run.of(latent_grid)
    section = config["autoencoder"]
    if section["name"] == "patch" and max(rows, columns) * section["factor"] > PATCH_SIDE:
        run.note(
            f"autoencoder 'patch' suits pictures of up to {PATCH_SIDE} pixels; these have "
            f"{rows * section['factor']} x {columns * section['factor']}"
        )
    if isinstance(found, Flux2Config):
        _, *periods = found.rope_periods
        for what, count, period in zip(
            ("rows", "columns", "text tokens"), (rows, columns, _tokens(run)), periods, strict=True
        ):
            if count > period:
                run.note(
                    f"model.backbone.rope_theta {found.rope_theta:g} with rope_axes "
                    f"{found.rope_axes} repeats after {period:.0f} positions, and there are "
                    f"{count} {what}: a larger rope_theta, or wider rope_axes, tell them apart"
                )


def _tokens(run: Run) -> int:
    """The length of the text with the robot state's token; 0 if it is not known."""
    try:
        return run.of(text_length) + 1
    except NotChecked:
        return 0
