"""Headless OpenGL for MuJoCo: find a backend that works, or say what to install; draw fast.

MuJoCo chooses its backend from the environment variable MUJOCO_GL when it is imported, and a
backend whose libraries are broken can end the process. So each candidate is tried in a process of
its own, and the variable is set here, before any simulator imports MuJoCo.
"""

import functools
import os
import subprocess
import sys
from importlib.util import find_spec

from imagewam_jax.errors import OpenGLUnavailable

# A context alone does not prove that drawing works: MjrContext compiles shaders and buffers.
_PROBE = """
import mujoco
context = mujoco.GLContext(16, 16)
context.make_current()
render = mujoco.MjrContext(mujoco.MjModel.from_xml_string("<mujoco/>"), 150)
render.free()
context.free()
print("rendering works")
"""
_PROBE_TIMEOUT_S = 60
_CANDIDATES = {"linux": ("egl", "osmesa"), "darwin": ("cgl",)}


@functools.cache
def configure_opengl() -> str:
    """Sets MUJOCO_GL to a backend that renders, and returns its name.

    A value that is already set is the only candidate. Call it before MuJoCo is imported.

    ModuleNotFoundError: MuJoCo is not installed.
    OpenGLUnavailable: no candidate renders; the message says what to install.
    """
    if find_spec("mujoco") is None:
        raise ModuleNotFoundError("MuJoCo is not installed: pip install imagewam-jax[sim]")
    chosen = os.environ.get("MUJOCO_GL")
    candidates = (chosen,) if chosen else _CANDIDATES.get(sys.platform, ("",))
    failures = {}
    for backend in candidates:
        failure = _probe(backend)
        if failure is None:
            os.environ["MUJOCO_GL"] = backend
            return backend
        failures[backend] = failure
    tried = "\n".join(f"  MUJOCO_GL={name}: {failure}" for name, failure in failures.items())
    raise OpenGLUnavailable(
        f"MuJoCo cannot render without a display here. Tried:\n{tried}\n"
        "On Debian or Ubuntu install one of\n"
        "  apt-get install libegl1 libopengl0 libgl1-mesa-dri   (EGL, also on a GPU)\n"
        "  apt-get install libosmesa6                           (software only)"
    )


def fast_renderer(model, image_side: int):
    """A `mujoco.Renderer` of square images, without what software OpenGL is slow at.

    Multisampling and shadows are off before the renderer allocates buffers for them.

    model: a `mujoco.MjModel`; what it says of quality and sizes is changed.
    image_side: side length in pixels.
    """
    import mujoco

    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    model.vis.global_.offwidth = max(model.vis.global_.offwidth, image_side)
    model.vis.global_.offheight = max(model.vis.global_.offheight, image_side)
    renderer = mujoco.Renderer(model, height=image_side, width=image_side)
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
    return renderer


def _probe(backend: str) -> str | None:
    """Renders with one backend in a new process; returns why it failed, or None."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {_PROBE_TIMEOUT_S} s"
    if done.returncode == 0 and "rendering works" in done.stdout:
        return None
    # The cause is the last line of the first traceback; what follows are errors of destructors.
    traceback = done.stderr.split("Exception ignored in:")[0].strip()
    return traceback.splitlines()[-1] if traceback else f"ended with status {done.returncode}"


if __name__ == "__main__":
    try:
        print(f"OpenGL: {configure_opengl()}")
    except OpenGLUnavailable as error:
        sys.exit(str(error))
