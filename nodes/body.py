from comfy_api.latest import IO

from ..lucid_core.starts.body import POSES, Body
from . import host
from .inputs import CATEGORY, errors_of, inputs_of


class LucidBody(IO.ComfyNode):
    @classmethod
    def define_schema(cls):
        return IO.Schema(
            node_id="LucidBody",
            display_name="Lucid Body",
            category=CATEGORY,
            search_aliases=["avatar", "human body", "mannequin", "openpose skeleton", "pose controlnet"],
            description="A neutral human body in a pose: a mesh to start an avatar from, and its OpenPose "
            "skeleton as a guide for a pose ControlNet.",
            inputs=[
                IO.Combo.Input(
                    "pose",
                    options=list(POSES),
                    tooltip="A pose: arms 45 degrees down. T pose: arms level. walking: left leg and right "
                    "arm in front.",
                ),
                *inputs_of(Body),
            ],
            outputs=[
                IO.Mesh.Output(
                    display_name="mesh",
                    tooltip="The body without colours, its front at +z and y up, for Lucid Points from Mesh "
                    "(`size` 0 keeps its position and scale).",
                ),
                IO.Splat.Output(
                    display_name="skeleton",
                    tooltip="OpenPose's skeleton of the body: `guide` of a Lucid ControlNet, with the hint "
                    "image and a pose ControlNet.",
                ),
            ],
        )

    @classmethod
    def execute(cls, pose, height) -> IO.NodeOutput:
        with errors_of(cls):
            body = Body(pose, height)
            return IO.NodeOutput(host.from_mesh(body.mesh()), host.from_splats(body.skeleton()))
