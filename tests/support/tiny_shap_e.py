"""A Shap-E of diffusers' own classes with few weights, saved as diffusers saves the real one.

The real weights are gigabytes and cannot be had in a test. The text encoder and the prior here have random
weights. The decoder's are set: it makes an ellipsoid whose colour tells where it is, and what the prior says
only stirs it a little. The table of marching cubes belongs to the weights; it is traced here, as the
crossings of a cube's edges, face by face.
"""

import itertools
import json
from pathlib import Path

import torch

RADII = torch.tensor([0.8, 0.5, 0.3])  # half axes along Shap-E's own x, y and z
COLOR_SLOPE = 2.0  # the colour is sigmoid(COLOR_SLOPE * position / RADII)
HIDDEN, POSITION = 16, 93  # widths; the second is that of diffusers' encoding of a position
STIR = 0.002  # standard deviation of what the latents change in a weight of the decoder
CORNERS = [(x, y, z) for z in (0, 1) for y in (0, 1) for x in (0, 1)]  # bit i of a case of marching cubes


def save(folder: Path, seed: int = 0) -> Path:
    """Write the pipeline into `folder`."""
    from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEPipeline
    from diffusers.pipelines.shap_e.renderer import ShapERenderer
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    words = tokenizer(folder)
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=16,
        projection_dim=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        embedding_dim=16,
        num_embeddings=4 * HIDDEN,
        embedding_proj_dim=16,
        time_embed_dim=64,
        clip_embed_dim=32,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    shapes = ((HIDDEN, POSITION), *[(HIDDEN, HIDDEN)] * 3)
    renderer = ShapERenderer(param_shapes=shapes, d_latent=16, d_hidden=HIDDEN)
    with torch.no_grad():
        set_weights(renderer)
        renderer.mesh_decoder.cases, renderer.mesh_decoder.masks = marching_cubes()
    scheduler = HeunDiscreteScheduler(
        num_train_timesteps=1024,
        beta_schedule="exp",
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
    )
    ShapEPipeline(prior, CLIPTextModelWithProjection(text), words, scheduler, renderer).save_pretrained(
        folder
    )
    return folder


def set_weights(renderer) -> None:
    """The decoder's MLP carries values v as pairs silu(v), silu(-v), whose difference is v.

    Of u = position / RADII the first layer makes +-u, the second +-S and +-u with S = sum of silu(u) +
    silu(-u) = u tanh(u / 2). The surface, S = tanh(1 / 2), crosses the axes at RADII.
    """
    pairs = torch.tensor([1.0, -1.0])
    first = torch.zeros(HIDDEN, POSITION)
    first[:6, :3] = torch.kron(torch.diag(1 / RADII), pairs[:, None])
    values = torch.zeros(4, HIDDEN)  # S, u from the first layer's 6
    values[0, :6] = 1
    values[1:, :6] = torch.kron(torch.eye(3), pairs)
    carried = torch.zeros(4, HIDDEN)  # the same from a later layer's 8
    carried[:, :8] = torch.kron(torch.eye(4), pairs)
    layer = lambda rows: torch.cat([torch.kron(rows, pairs[:, None]), torch.zeros(HIDDEN - 8, HIDDEN)])
    for i, weight in enumerate((first, layer(values), layer(carried), layer(carried))):
        made = renderer.params_proj.projections[f"nerstf__mlp__{i}__weight"]
        made.norm.weight.fill_(STIR)
        made.proj.bias.copy_(weight.flatten())
    for i, linear in enumerate(renderer.mlp.mlp):
        linear.bias.zero_()
        if i in (4, 5):
            linear.weight.zero_()
            linear.weight[:, :HIDDEN] = layer(carried)
    last = renderer.mlp.mlp[6]
    last.weight.zero_()
    last.weight[:3] = -carried[0]  # signed distance and both densities
    last.weight[1:3] *= 200
    last.bias[:3] = torch.tensor([1.0, 200.0, 200.0]) * torch.tensor(0.5).tanh()
    last.weight[3:] = COLOR_SLOPE * carried[1:].repeat(
        3, 1
    )  # colours of the mesh and of both radiance fields


def marching_cubes():
    """(256, 5, 3) edges of the triangles of each case, and which of the five are there."""
    cases, masks = torch.zeros(256, 5, 3, dtype=torch.long), torch.zeros(256, 5, dtype=torch.bool)
    for case in range(256):
        for i, triangle in enumerate(itertools.islice(triangles(case), 5)):  # a few ambiguous cases have more
            cases[case, i], masks[case, i] = torch.tensor(triangle), True
    return cases, masks


def triangles(case):
    follows = {}
    for axis, side in itertools.product(range(3), (0, 1)):
        ring = []
        for a, b in ((0, 0), (1, 0), (1, 1), (0, 1)):
            corner = [a, b]
            corner.insert(axis, side)
            ring.append(tuple(corner))
        ring = ring[:: 1 if (side == 1) != (axis == 1) else -1]  # counter-clockwise from outside
        inside = [case >> CORNERS.index(corner) & 1 for corner in ring]
        for i in range(4):
            if not inside[i - 1] and inside[i]:  # enters at i; leaves where the run of inner corners ends
                end = next(j for j in range(i, i + 4) if not inside[(j + 1) % 4])
                follows[edge(ring[i - 1], ring[i])] = edge(ring[end % 4], ring[(end + 1) % 4])
    while follows:
        start, loop = next(iter(follows)), []
        while start in follows:
            loop.append(start)
            start = follows.pop(start)
        yield from ((loop[0], b, c) for b, c in itertools.pairwise(loop[1:]))


def edge(a, b):
    """diffusers' number of the edge between two corners: along x, y, z, four each, by the other two
    coordinates.
    """
    axis = next(i for i in range(3) if a[i] != b[i])
    low, high = (a[i] for i in range(3) if i != axis)
    return 4 * axis + low + 2 * high


def tokenizer(folder):
    """CLIP's with the letters alone as its words."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = folder / "letters.json", folder / "letters.txt"
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    merges.write_text("#version: 0.2\n", encoding="utf-8")
    return CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)
