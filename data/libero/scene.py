"""What the physics of a LIBERO task say: where the hand and the objects are.

An expert may look at this. A policy may not: it sees what `Libero.observe` returns.
"""

from typing import NamedTuple

import mujoco
import numpy as np
from jaxtyping import Bool, Float64

from imagewam_jax.evaluation.simulators.libero import Libero, standing_fixtures

_CORNERS = np.array(list(np.ndindex(2, 2, 2))) * 2.0 - 1.0


class Box(NamedTuple):
    """A box along the axes of the world, in metres."""

    low: Float64[np.ndarray, "xyz=3"]
    high: Float64[np.ndarray, "xyz=3"]

    @property
    def center(self) -> Float64[np.ndarray, "xyz=3"]:
        return (self.low + self.high) / 2

    @property
    def size(self) -> Float64[np.ndarray, "xyz=3"]:
        return self.high - self.low


class Scene:
    """The task that a simulator was reset to last, as it is at the moment of each call.

    Positions are in metres and rotations are matrices, both in the frame of the world.
    """

    def __init__(self, simulator: Libero):
        self._simulator = simulator

    @property
    def goal(self) -> list[list[str]]:
        """The conditions of success, such as ["on", "akita_black_bowl_1", "plate_1"]."""
        return self._env.parsed_problem["goal_state"]

    @property
    def obstacles(self) -> list[str]:
        """The names of all objects and fixtures, without what they stand on."""
        return [*self._env.objects_dict, *standing_fixtures(self._env)]

    def hand(self) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3 3"]]:
        """Position and rotation of the grip site, which lies between the finger tips. Its third
        axis points out of the hand, and the fingers open along its first."""
        site = self._robot.eef_site_id
        return self._data.site_xpos[site].copy(), self._data.site_xmat[site].reshape(3, 3).copy()

    def fingers(self) -> Float64[np.ndarray, "2"]:
        """The positions of both fingers."""
        return self._data.qpos[self._robot._ref_gripper_joint_pos_indexes].copy()

    def joints(self) -> Float64[np.ndarray, "7"]:
        """The angles of the arm in radians, sampled when the observation's state was."""
        return np.array(self._env._observables["robot0_joint_pos"].obs)

    def is_region(self, name: str) -> bool:
        """Whether a target is a marked place of a fixture, and not an object."""
        return name in self._env.object_sites_dict

    def region(self, name: str) -> Float64[np.ndarray, "xyz=3"]:
        """The middle of a marked place."""
        return np.array(self._env.sim.data.get_site_xpos(name))

    def box(self, name: str) -> Box:
        """What can be hit of an object or a fixture."""
        model = self._model
        root = model.body_rootid[self._env.obj_body_id[name]]
        boxes = self._boxes(model.body_rootid[model.geom_bodyid] == root)
        return _around(boxes)

    def handle(self, drawer: str) -> Box:
        """The bar of a drawer of the cabinet: what lies farthest in front of it.

        drawer: "top", "middle" or "bottom".
        """
        model = self._model
        body = next(
            body
            for body in range(model.nbody)
            if "cabinet" in model.body(body).name and drawer in model.body(body).name
        )
        boxes = self._boxes(model.geom_bodyid == body)
        front = max(box.high[1] for box in boxes)
        return _around([box for box in boxes if box.high[1] > front - 0.006])

    @property
    def _env(self):
        return self._simulator.env

    @property
    def _robot(self):
        return self._env.robots[0]

    @property
    def _model(self) -> mujoco.MjModel:
        return self._env.sim.model._model

    @property
    def _data(self) -> mujoco.MjData:
        return self._env.sim.data._data

    def _boxes(self, of: Bool[np.ndarray, "geoms"]) -> list[Box]:
        """One box for each of these geoms that can be hit."""
        model, data = self._model, self._data
        solid = (model.geom_contype != 0) | (model.geom_conaffinity != 0)
        found = []
        for geom in np.flatnonzero(of & solid):
            if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
                mesh = model.geom_dataid[geom]
                first = model.mesh_vertadr[mesh]
                points = model.mesh_vert[first : first + model.mesh_vertnum[mesh]]
            else:
                center, half = np.split(model.geom_aabb[geom], 2)
                points = center + half * _CORNERS
            points = points @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom]
            found.append(Box(points.min(0), points.max(0)))
        return found


def _around(boxes: list[Box]) -> Box:
    lows, highs = zip(*boxes, strict=True)
    return Box(np.min(lows, 0), np.max(highs, 0))
