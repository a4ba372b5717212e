"""One object on a floor before a camera, in PyBullet: a film of what happens to it.

Lengths are metres. The camera looks along y, so that x is right and smaller y is closer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from lmgraft.data.video.films import Film, Frames, Masks
from lmgraft.versions import optional

Vector = npt.NDArray[np.float64]
Generator = np.random.Generator

_FILMING = "filming in a physics engine"
_HERTZ = 240
_SETTLING = 150
"""Steps that an object has to come to rest."""
_AIM = (0.0, 0.0, 0.14)
_VIEW = 42.0  # degrees
MESHES, SHAPES = 1000, 250
"""Objects that there are: meshes of pybullet_data's random_urdfs, and simple shapes set together."""


class Motion(NamedTuple):
    """What happens while it is filmed."""

    seconds: float
    """From the first frame to the last."""
    drive: Callable[[float], None] = lambda _: None
    """Moves what is moved by hand; called with the share of the film that has passed before each step."""


def models() -> Path:
    """The folder of the models that come with PyBullet. PyBullet itself is not imported: that writes to the terminal.

    Raises:
        VersionError: If it is not installed.
    """
    return Path(optional("pybullet_data", "physics", _FILMING).getDataPath())


def simulate(thing: str, action: str, size: int, frames: int, rng: Generator) -> Film | None:
    """A film of an action as physics runs it; None where the object did not do it to be seen, as rolling away.

    Args:
        thing: The object, mesh000 to mesh999 or shape000 to shape249.
        action: A key of `ACTIONS`.
        size: Pixels a side.
        rng: Draws all else.
    """
    stage = _Stage(thing, rng)
    try:
        motion, shots = ACTIONS[action](stage, rng), [stage.shoot(size)]
        every = max(1, round(motion.seconds * _HERTZ / max(1, frames - 1)))
        for step in range(1, every * (frames - 1) + 1):
            motion.drive(step / (every * (frames - 1)))
            stage.run(1)
            if step % every == 0:
                shots.append(stage.shoot(size))
    finally:
        stage.close()
    film = Film(*(np.stack(part) for part in zip(*shots, strict=True)))
    return film if happened(action, film) else None


class _Stage:
    """A simulation by itself, with a floor, an object and a camera."""

    def __init__(self, thing: str, rng: Generator) -> None:
        self.engine = optional("pybullet", "physics", _FILMING)
        self.client = {"physicsClientId": self.engine.connect(self.engine.DIRECT)}
        self.call("setGravity", 0, 0, -9.81)
        self._lay_floor(rng)
        self.extent = rng.uniform(0.22, 0.32)
        self.thing = (self._mesh if thing.startswith("mesh") else self._shape)(int(thing[-3:]), rng)
        self.place([0, 0, 0.5], rng)
        pitch, away = np.radians(rng.uniform(30, 42)), rng.uniform(1.15, 1.3)
        aim = np.array(_AIM) + rng.uniform(-0.03, 0.03, 3)
        eye = aim + away * np.array([0, -np.cos(pitch), np.sin(pitch)])
        self._view = self.call("computeViewMatrix", eye.tolist(), aim.tolist(), [0, 0, 1])
        self._projection = self.call("computeProjectionMatrixFOV", _VIEW, 1, 0.05, 20)
        self._light = [rng.uniform(-1, 1), rng.uniform(-1, 0.3), rng.uniform(1, 2)]
        self._ambient = rng.uniform(0.5, 0.7)

    def call(self, name: str, *given: Any, **named: Any) -> Any:
        """A function of PyBullet on this simulation."""
        return getattr(self.engine, name)(*given, **named, **({} if name.startswith("compute") else self.client))

    def close(self) -> None:
        self.call("disconnect")

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.call("stepSimulation")

    def shoot(self, size: int) -> tuple[Frames, Masks]:
        """The picture (H, W, 3), and where the object is to be seen in it (H, W)."""
        *_, colours, _, numbers = self.call(
            "getCameraImage", size, size, self._view, self._projection, lightDirection=self._light,
            lightAmbientCoeff=self._ambient, lightDiffuseCoeff=0.5, lightSpecularCoeff=0.1,
            renderer=self.engine.ER_TINY_RENDERER,
        )  # fmt: skip
        pixels = np.asarray(colours, np.uint8).reshape(size, size, 4)[..., :3]
        return pixels, np.asarray(numbers).reshape(size, size) == self.thing

    def place(self, where: Any, rng: Generator) -> None:
        """Put the object somewhere, turned at random, at rest."""
        turned = self.engine.getQuaternionFromEuler(rng.uniform(-np.pi, np.pi, 3).tolist())
        self.call("resetBasePositionAndOrientation", self.thing, list(where), turned)
        self.move()

    def settle(self, where: Any, rng: Generator) -> None:
        """Let the object come to rest on the floor, at (x, y)."""
        x, y = where
        self.place([x, y, 0.75 * self.extent], rng)
        self.run(_SETTLING)
        (_, _, z), turned = self.call("getBasePositionAndOrientation", self.thing)
        self.call("resetBasePositionAndOrientation", self.thing, [x, y, z], turned)
        self.move()

    def move(self, speed: Any = (0, 0, 0), spin: Any = (0, 0, 0)) -> None:
        """Give the object a speed, m/s, and a spin, rad/s."""
        self.call("resetBaseVelocity", self.thing, list(speed), list(spin))

    def slippery(self, friction: float) -> None:
        for link in range(-1, self.call("getNumJoints", self.thing)):
            self.call(
                "changeDynamics", self.thing, link, lateralFriction=friction, spinningFriction=0, linearDamping=0,
                angularDamping=0,
            )  # fmt: skip

    def bounds(self) -> tuple[Vector, Vector]:
        """The object's least and greatest x, y, z."""
        links = range(-1, self.call("getNumJoints", self.thing))
        boxes = np.array([self.call("getAABB", self.thing, link) for link in links])
        return boxes[:, 0].min(0), boxes[:, 1].max(0)

    def block(self, halves: Any, colour: Any, mass: float = 0.0, solid: bool = False) -> int:
        """A box by its half sides; one that is not solid goes through things."""
        seen = self.call("createVisualShape", self.engine.GEOM_BOX, halfExtents=list(halves), rgbaColor=[*colour, 1])
        felt = self.call("createCollisionShape", self.engine.GEOM_BOX, halfExtents=list(halves)) if solid else -1
        return int(self.call("createMultiBody", mass, felt, seen, [0, 0, 9]))

    def put(self, body: int, where: Any) -> None:
        self.call("resetBasePositionAndOrientation", body, list(where), [0, 0, 0, 1])

    def _lay_floor(self, rng: Generator) -> None:
        """A plane with a texture of a few colours, blurred or in squares."""
        coarse = rng.integers(0, 200, (*rng.integers(3, 9, 2), 3), np.uint8)
        how = (Image.Resampling.BICUBIC, Image.Resampling.NEAREST)[rng.integers(2)]
        contrast, middle = rng.uniform(0.1, 0.5), rng.integers(60, 190, 3)
        coarse = (middle + contrast * (coarse - 100.0)).clip(0, 255).astype(np.uint8)
        plane, scale = str(models() / "plane.obj"), rng.uniform(0.25, 0.6)
        seen = self.call("createVisualShape", self.engine.GEOM_MESH, fileName=plane, meshScale=[scale, scale, 1])
        turned = self.engine.getQuaternionFromEuler([0, 0, rng.uniform(-np.pi, np.pi)])
        felt = self.call("createCollisionShape", self.engine.GEOM_PLANE)
        floor = self.call("createMultiBody", 0, felt, seen, [0, 0, 0], turned)
        with TemporaryDirectory() as scratch:
            Image.fromarray(coarse).resize((128, 128), how).save(f"{scratch}/floor.png")
            texture = self.call("loadTexture", f"{scratch}/floor.png")
        self.call("changeVisualShape", floor, -1, textureUniqueId=texture, rgbaColor=[1, 1, 1, 1])

    def _mesh(self, number: int, rng: Generator) -> int:
        file = models() / "random_urdfs" / f"{number:03}" / f"{number:03}.obj"
        corners = [line.split()[1:4] for line in file.read_text().splitlines() if line.startswith("v ")]
        scale = self.extent / float(np.ptp(np.array(corners, float), axis=0).max())
        form = {"fileName": str(file), "meshScale": [scale] * 3}
        seen = self.call("createVisualShape", self.engine.GEOM_MESH, rgbaColor=_colour(rng), **form)
        felt = self.call("createCollisionShape", self.engine.GEOM_MESH, **form)
        return int(self.call("createMultiBody", 0.3, felt, seen))

    def _shape(self, number: int, rng: Generator) -> int:
        """Two simple bodies of two colours as one: what they are follows from the number alone."""
        fixed = np.random.default_rng([number, MESHES])
        (one, height), (other, above) = (self._part(fixed, share, rng) for share in (0.55, 0.4))
        aside = [*(fixed.uniform(-0.15, 0.15, 2) * self.extent).tolist(), 0.9 * (height + above)]
        none, upright = [0, 0, 0], [0, 0, 0, 1]
        return int(self.call(
            "createMultiBody", 0.3, *one, linkMasses=[0.1], linkCollisionShapeIndices=[other[0]],
            linkVisualShapeIndices=[other[1]], linkPositions=[aside], linkOrientations=[upright],
            linkInertialFramePositions=[none], linkInertialFrameOrientations=[upright], linkParentIndices=[0],
            linkJointTypes=[self.engine.JOINT_FIXED], linkJointAxis=[[0, 0, 1]],
        ))  # fmt: skip

    def _part(self, fixed: Generator, share: float, rng: Generator) -> tuple[tuple[int, int], float]:
        """A simple body, as felt and as seen, and half its height."""
        a, b, c = (fixed.uniform(0.6, 1, 3) * share * self.extent / 2).tolist()
        felt, seen, half = (
            ({"halfExtents": [2 * a, b, c]}, {"halfExtents": [2 * a, b, c]}, c),
            ({"radius": a, "height": 2 * c}, {"radius": a, "length": 2 * c}, c),
            ({"radius": a}, {"radius": a}, a),
        )[kind := int(fixed.integers(3))]
        form = (self.engine.GEOM_BOX, self.engine.GEOM_CYLINDER, self.engine.GEOM_SPHERE)[kind]
        body = self.call("createCollisionShape", form, **felt)
        return (body, self.call("createVisualShape", form, rgbaColor=_colour(rng), **seen)), half


def _colour(rng: Generator) -> list[float]:
    return [*rng.uniform(0.1, 1.0, 3).tolist(), 1.0]


def _fall(stage: _Stage, rng: Generator) -> Motion:
    stage.place([*rng.uniform(-0.15, 0.15, 2), rng.uniform(0.36, 0.46)], rng)
    stage.move(spin=rng.normal(0, 1.5, 3))
    return Motion(rng.uniform(0.26, 0.38))


def _push(stage: _Stage, rng: Generator) -> Motion:
    stage.settle((rng.uniform(0.05, 0.22), rng.uniform(-0.12, 0.12)), rng)
    stage.slippery(0.4)
    least, most = stage.bounds()
    tall = rng.uniform(0.04, 0.08)
    pusher = stage.block([0.02, 0.12, tall], rng.uniform(0.1, 1, 3), mass=50, solid=True)
    start, middle = most[0] + 0.02 + rng.uniform(0.0, 0.05), (least[1] + most[1]) / 2
    way, seconds = rng.uniform(0.38, 0.5), rng.uniform(0.4, 0.8)

    def drive(passed: float) -> None:
        stage.put(pusher, [start - way * passed, middle, tall + 0.002])
        stage.call("resetBaseVelocity", pusher, [-way / seconds, 0, 0], [0, 0, 0])

    drive(0.0)
    return Motion(seconds, drive)


def _roll(stage: _Stage, rng: Generator) -> Motion:
    stage.settle((rng.uniform(-0.1, 0.1), rng.uniform(0.4, 0.6)), rng)
    stage.slippery(0.25)
    speed = rng.uniform(1.4, 1.9)
    stage.move([rng.uniform(-0.1, 0.1), -speed, 0.3], [2 * speed / stage.extent, 0, 0])
    return Motion(rng.uniform(0.4, 0.52))


def _cover(stage: _Stage, rng: Generator) -> Motion:
    """A box is put over the object from above, or a screen is drawn before it from one side."""
    stage.settle(rng.uniform(-0.15, 0.15, 2), rng)
    least, most = stage.bounds()
    middle, halves = (least + most) / 2, (most - least) / 2 + 0.02
    if rng.integers(2):
        begin, end = np.array([*middle[:2], 0.75]), np.array([*middle[:2], halves[2]])
    else:
        halves = np.array([halves[0] + 0.04, 0.01, halves[2] + 0.09])
        end = np.array([middle[0], least[1] - 0.03, halves[2]])
        begin = end + np.array([rng.choice([-1, 1]) * rng.uniform(0.4, 0.7), 0, 0])
    cover = stage.block(halves, rng.uniform(0.1, 1, 3))

    def drive(passed: float) -> None:
        stage.put(cover, begin + (end - begin) * min(1.0, 1.1 * passed))

    drive(0.0)
    return Motion(0.1, drive)


def _turn(stage: _Stage, rng: Generator) -> Motion:
    stage.settle(rng.uniform(-0.2, 0.2, 2), rng)
    stage.slippery(0.01)
    seconds = 0.3
    stage.move(spin=[0, 0, -np.radians(rng.uniform(70, 160)) / seconds])
    return Motion(seconds)


ACTIONS: dict[str, Callable[[_Stage, Generator], Motion]] = {
    "fallen": _fall, "pushed left": _push, "rolled closer": _roll, "covered": _cover, "turned clockwise": _turn,
}  # fmt: skip
"""What physics does; the reverse of each is a film of it shown backwards."""


def happened(action: str, film: Film) -> bool:
    """Whether a film shows its action: the object in sight throughout, and moved as it should. Knows no order."""
    masks, size = film.masks, film.masks.shape[1]
    areas = masks.sum((1, 2)) / size**2
    if areas[0] < 0.012 or (areas.min() < 0.012 and action != "covered"):
        return False
    edges = masks[:, [0, -1], :].any() or masks[:, :, [0, -1]].any()
    if action == "covered":
        return bool(not edges and areas[-1] < 0.1 * areas[0])
    (y, x), (last_y, last_x) = _middle(masks[0]), _middle(masks[-1])
    changed = np.abs(film.frames[-1].astype(float) - film.frames[0])[masks[0] | masks[-1]].mean()
    return (
        bool(not edges)
        and {
            "fallen": last_y - y > 0.15 * size,
            "pushed left": x - last_x > 0.15 * size,
            "rolled closer": areas[-1] > 1.4 * areas[0],
            "turned clockwise": bool(changed > 10) and max(abs(last_y - y), abs(last_x - x)) < 0.08 * size,
        }[action]
    )


def _middle(mask: Masks) -> tuple[float, float]:
    """Row and column of the middle of a mask."""
    rows, columns = np.nonzero(mask)
    return float(rows.mean()), float(columns.mean())
