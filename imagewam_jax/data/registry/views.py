"""A short way to write the cameras of a row."""

from imagewam_jax.data.registry.spec import Camera


def views(*, bgr: tuple[str, ...] = (), **roles: str) -> tuple[tuple[str, Camera], ...]:
    """Cameras by role, keys below `observation/`. bgr: the roles that are stored in that order."""
    return tuple(
        (role, Camera(f"observation/{key}", bgr=role in bgr)) for role, key in roles.items()
    )
