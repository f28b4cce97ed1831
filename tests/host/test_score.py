"""A splat that the host made shows what its prompt says: scored beside the truth of the demo world."""

import pytest

from demo import score, world

from .graphs import ply_of, workflow

RUN = {"steps": 40, "views": 1, "resolution": 128, "seed": 401}


@pytest.fixture(scope="module")
def mushroom(client):
    cloud = {"count": 3000}
    return ply_of(client, client.run(workflow(LucidPointCloud=cloud, LucidDream=RUN)))


def psnr_against(splats, prompt):
    truth = score.truth(world.parse(prompt))
    _, rgb, _ = score.best_view(splats, truth)
    return score.psnr(rgb, truth.rgb)


def test_the_splat_is_nearer_to_its_prompt_than_to_another_thing(mushroom):
    wanted = psnr_against(mushroom, "a red mushroom")
    others = {
        prompt: psnr_against(mushroom, prompt) for prompt in ("a red cube", "a green mug", "a purple house")
    }
    print(f"a red mushroom: {wanted:.2f} dB; others: {others}")
    assert wanted > 14 and wanted > max(others.values()) + 0.5
